/* mchannel._quick: the calls that every message costs, without a Python frame or a foreign function call around them.
 *
 * `Quick` is what RingEnd inherits. What is no result (an interruption, attention, an error) goes to the method
 * `_goes_on` of the heir, which raises, or returns so that the call is made again. Stable ABI.
 */
#include <Python.h>

#include "end.h"

typedef struct {
  PyObject_HEAD
  mcp_end *end; /* the heir's, and kept alive by it */
} Quick;

static mcp_end *end_of(PyObject *self) {
  mcp_end *end = ((Quick *)self)->end;
  if (!end) PyErr_SetString(PyExc_RuntimeError, "this end of the ring has not been joined");
  return end;
}

/* 0 to call again, -1 when it raised. */
static int goes_on(PyObject *self, int64_t code) {
  PyObject *answer = PyObject_CallMethod(self, "_goes_on", "L", (long long)code);
  if (!answer) return -1;
  Py_DECREF(answer);
  return 0;
}

/* The copy is made before the message counts as handed out. */
static PyObject *handed_out(mcp_end *end, const uint8_t *at, int64_t length) {
  PyObject *message = PyBytes_FromStringAndSize((const char *)at, (Py_ssize_t)length);
  if (message) mc_take(&end->in);
  return message;
}

static PyObject *quick_join(PyObject *self, PyObject *address) {
  void *end = PyLong_AsVoidPtr(address);
  if (!end && PyErr_Occurred()) return NULL;
  ((Quick *)self)->end = end;
  Py_RETURN_NONE;
}

static PyObject *quick_write(PyObject *self, PyObject *message) {
  char *data;
  Py_ssize_t length;
  mcp_end *end = end_of(self);
  if (!end || PyBytes_AsStringAndSize(message, &data, &length)) return NULL;
  int code;
  while ((code = mcp_write(end, data, (size_t)length)) != MC_OK) {
    if (code == MC_FULL) Py_RETURN_FALSE;
    if (goes_on(self, code) < 0) return NULL;
  }
  Py_RETURN_TRUE;
}

static PyObject *quick_read(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names) {
  mcp_end *end = end_of(self);
  if (!end) return NULL;
  Py_ssize_t named = names ? PyTuple_Size(names) : 0;
  if (count + named > 1 || (named && PyUnicode_CompareWithASCIIString(PyTuple_GetItem(names, 0), "timeout"))) {
    PyErr_SetString(PyExc_TypeError, "read() takes one argument, timeout");
    return NULL;
  }
  double timeout = count + named == 0 ? 0 : args[0] == Py_None ? -1 : PyFloat_AsDouble(args[0]);
  if (timeout == -1 && PyErr_Occurred()) return NULL;
  const uint8_t *at;
  int64_t n;
  while ((n = mcp_next(end, timeout, &at)) < 0) {
    if (n == MC_EMPTY || n == MC_TIMEOUT) Py_RETURN_NONE;
    if (goes_on(self, n) < 0) return NULL;
    timeout = end->left;
  }
  return handed_out(end, at, n);
}

static PyObject *quick_read_newest(PyObject *self, PyObject *nothing) {
  (void)nothing;
  mcp_end *end = end_of(self);
  if (!end) return NULL;
  const uint8_t *at;
  int64_t n;
  while ((n = mcp_newest(end, &at)) < 0) {
    if (n == MC_EMPTY) Py_RETURN_NONE;
    if (goes_on(self, n) < 0) return NULL;
  }
  return handed_out(end, at, n);
}

static PyMethodDef methods[] = {
    {"_join", quick_join, METH_O, "Work on the mcp_end at this address from now on."},
    {"write", quick_write, METH_O,
     "Publish a message; False when there is no room until the peer reads on. Raise MessageTooBig."},
    {"read", (PyCFunction)(void (*)(void))quick_read, METH_FASTCALL | METH_KEYWORDS,
     "Acknowledge what was handed out before, and return the next message, or None after timeout seconds.\n\n"
     "A timeout of 0, the default, never waits, None waits for ever."},
    {"read_newest", quick_read_newest, METH_NOARGS,
     "Acknowledge all but the newest message that is there, and return that one, or None.\n\n"
     "Those that come meanwhile are left: a writer that is faster than this reader cannot hold it."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "One end of a ring, as far as it must be quick."},
    {Py_tp_methods, methods},
    {0, NULL},
};

static PyType_Spec spec = {"mchannel._quick.Quick", sizeof(Quick), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, slots};

static int fill(PyObject *module) {
  PyObject *type = PyType_FromSpec(&spec);
  if (!type) return -1;
  int failed = PyModule_AddObjectRef(module, "Quick", type);
  Py_DECREF(type);
  return failed;
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, fill}, {0, NULL}};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_quick", .m_slots = module_slots};

PyMODINIT_FUNC PyInit__quick(void) { return PyModuleDef_Init(&module); }
