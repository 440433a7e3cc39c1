/* mbroker.alerts._edges: Python's edges of the matcher's; there may be a million a second, and of each an object is made
 * by the engine and one for whoever subscribed.
 *
 * Both are of a class of named tuples: five items, and the first says of whom. Stable ABI.
 */
#include <Python.h>
#include <string.h>

#include "match.h"

enum { RULE, KEY, FIRING, AT, VALUE, FIELDS };

/* A named tuple of the class `kind`; takes its items, of which some may be NULL after an error. */
static PyObject *made(PyTypeObject *kind, PyObject *items[FIELDS]) {
  int lacks = 0;
  for (int i = 0; i < FIELDS; i++) lacks |= !items[i];
  PyObject *one = lacks ? NULL : PyType_GenericAlloc(kind, FIELDS);
  for (int i = 0; i < FIELDS; i++)
    if (one) PyTuple_SetItem(one, i, items[i]);
    else Py_XDECREF(items[i]);
  return one;
}

static PyTypeObject *kind_of(PyObject *kind) {
  if (PyType_Check(kind) && PyType_IsSubtype((PyTypeObject *)kind, &PyTuple_Type)) return (PyTypeObject *)kind;
  PyErr_SetString(PyExc_TypeError, "edges are named tuples");
  return NULL;
}

/* The endpoint of an edge: where its rule is, or the series that its first comparison reads. Borrowed. */
static PyObject *key_of(const match_edge *edge, PyObject *endpoints, const Py_buffer *places, PyObject *spots) {
  if (PyDict_Size(spots)) {
    PyObject *rule = PyLong_FromUnsignedLong(edge->rule);
    PyObject *spot = rule ? PyDict_GetItemWithError(spots, rule) : NULL;
    Py_XDECREF(rule);
    if (spot) return PyList_GetItem(endpoints, PyLong_AsSsize_t(spot));
    if (PyErr_Occurred()) return NULL;
  }
  if (edge->source < (size_t)places->len / sizeof(uint32_t))
    return PyList_GetItem(endpoints, ((const uint32_t *)places->buf)[edge->source]);
  PyErr_SetString(PyExc_IndexError, "an edge is of no series that is known");
  return NULL;
}

static PyObject *filled(PyTypeObject *kind, const Py_buffer *flips, PyObject *endpoints, const Py_buffer *places,
                        PyObject *spots) {
  Py_ssize_t count = flips->len / (Py_ssize_t)sizeof(match_edge);
  PyObject *found = PyList_New(count);
  for (Py_ssize_t i = 0; found && i < count; i++) {
    match_edge edge;
    memcpy(&edge, (const char *)flips->buf + i * (Py_ssize_t)sizeof edge, sizeof edge); /* at any address */
    PyObject *key = key_of(&edge, endpoints, places, spots);
    PyObject *one = key ? made(kind, (PyObject *[FIELDS]){
                                         [RULE] = PyLong_FromUnsignedLong(edge.owner),
                                         [KEY] = Py_NewRef(key),
                                         [FIRING] = PyBool_FromLong(edge.fires),
                                         [AT] = PyLong_FromLongLong(edge.at),
                                         [VALUE] = PyFloat_FromDouble(edge.value),
                                     })
                        : NULL;
    if (one) PyList_SetItem(found, i, one);
    else Py_CLEAR(found);
  }
  return found;
}

static PyObject *fired(PyObject *module, PyObject *args) {
  (void)module;
  PyObject *of, *endpoints, *spots, *found = NULL;
  Py_buffer flips, places;
  if (!PyArg_ParseTuple(args, "Oy*O!y*O!:fired", &of, &flips, &PyList_Type, &endpoints, &places, &PyDict_Type, &spots))
    return NULL;
  PyTypeObject *kind = kind_of(of);
  if (kind && (flips.len % (Py_ssize_t)sizeof(match_edge) || places.itemsize != sizeof(uint32_t)))
    PyErr_SetString(PyExc_ValueError, "edges of the matcher are wanted, and places as an array of I");
  else if (kind)
    found = filled(kind, &flips, endpoints, &places, spots);
  PyBuffer_Release(&flips);
  PyBuffer_Release(&places);
  return found;
}

/* Append an edge for each of `takers`; -1 when it raised. */
static int tell(PyTypeObject *kind, PyObject *told, PyObject *one, PyObject *takers) {
  for (Py_ssize_t taker = 0; taker < PyList_Size(takers); taker++) {
    PyObject *items[FIELDS] = {Py_NewRef(PyList_GetItem(takers, taker))};
    for (int i = KEY; i < FIELDS; i++) items[i] = Py_XNewRef(PyTuple_GetItem(one, i));
    PyObject *edge = made(kind, items);
    int failed = edge ? PyList_Append(told, edge) : -1;
    Py_XDECREF(edge);
    if (failed) return -1;
  }
  return 0;
}

static PyObject *edges(PyObject *module, PyObject *args) {
  (void)module;
  PyObject *of, *fired, *rules;
  if (!PyArg_ParseTuple(args, "OO!O!:edges", &of, &PyList_Type, &fired, &PyDict_Type, &rules)) return NULL;
  PyTypeObject *kind = kind_of(of);
  PyObject *told = kind ? PyList_New(0) : NULL;
  for (Py_ssize_t i = 0; told && i < PyList_Size(fired); i++) {
    PyObject *one = PyList_GetItem(fired, i), *rule = PyTuple_GetItem(one, RULE); /* borrowed */
    PyObject *takers = rule ? PyDict_GetItemWithError(rules, rule) : NULL;
    if (takers && !PyList_Check(takers)) PyErr_SetString(PyExc_TypeError, "takers of a rule are a list");
    else if (takers) tell(kind, told, one, takers);
    if (PyErr_Occurred()) Py_CLEAR(told);
  }
  return told;
}

static PyMethodDef functions[] = {
    {"fired", fired, METH_VARARGS,
     "Return an object of the class for each of the matcher's edges: rule, key, firing, at and value."},
    {"edges", edges, METH_VARARGS,
     "Return, for each edge and each taker of its rule, an object of the class that names the taker in its place."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_edges", .m_methods = functions, .m_slots = slots};

PyMODINIT_FUNC PyInit__edges(void) { return PyModuleDef_Init(&module); }
