/* mchannel._frame: encode and glance of mchannel/frame.py, which has both in Python too; every message costs them.
 *
 * Stable ABI; needs nothing but Python.
 */
#include <Python.h>
#include <stdint.h>
#include <string.h>

/* The header of a frame, as frame.py describes it: little-endian, at any address. */
enum { HEADER = 24, DATA = 5 };
static const uint64_t MOST_NUMBER = UINT64_C(1) << 62;

static void put(uint8_t *at, uint64_t value, int bytes) {
  for (int i = 0; i < bytes; i++) at[i] = (uint8_t)(value >> 8 * i);
}

static uint64_t get(const uint8_t *at, int bytes) {
  uint64_t value = 0;
  for (int i = 0; i < bytes; i++) value |= (uint64_t)at[i] << 8 * i;
  return value;
}

static PyObject *encode(PyObject *module, PyObject *const *args, Py_ssize_t count) {
  (void)module;
  static const int widths[] = {1, 4, 8, 8, 1}; /* kind, epoch, number, ack, flags */
  unsigned long long field[5];
  char *body;
  Py_ssize_t length;
  if (count != 6) {
    PyErr_SetString(PyExc_TypeError, "encode() takes kind, epoch, number, ack, flags and body");
    return NULL;
  }
  for (int i = 0; i < 5; i++) {
    field[i] = PyLong_AsUnsignedLongLong(args[i]);
    if (PyErr_Occurred()) return NULL;
    if (widths[i] < 8 && field[i] >> 8 * widths[i]) {
      PyErr_SetString(PyExc_OverflowError, "a field of a frame is too large");
      return NULL;
    }
  }
  if (PyBytes_AsStringAndSize(args[5], &body, &length)) return NULL;
  PyObject *frame = PyBytes_FromStringAndSize(NULL, HEADER + length);
  if (!frame) return NULL;
  uint8_t *at = (uint8_t *)PyBytes_AsString(frame);
  at[0] = 'm', at[1] = 'C', at[2] = (uint8_t)field[0], at[3] = (uint8_t)field[4];
  put(at + 4, field[1], 4);
  put(at + 8, field[2], 8);
  put(at + 16, field[3], 8);
  memcpy(at + HEADER, body, (size_t)length);
  return frame;
}

static PyObject *glance(PyObject *module, PyObject *const *args, Py_ssize_t count) {
  (void)module;
  char *data;
  Py_ssize_t length;
  if (count != 4) {
    PyErr_SetString(PyExc_TypeError, "glance() takes data, limit, epoch and number");
    return NULL;
  }
  long long limit = PyLong_AsLongLong(args[1]);
  if (limit == -1 && PyErr_Occurred()) return NULL;
  uint64_t epoch = PyLong_AsUnsignedLongLong(args[2]);
  if (epoch == UINT64_MAX && PyErr_Occurred()) return NULL;
  uint64_t number = PyLong_AsUnsignedLongLong(args[3]);
  if (number == UINT64_MAX && PyErr_Occurred()) return NULL;
  if (PyBytes_AsStringAndSize(args[0], &data, &length)) return NULL;
  const uint8_t *at = (const uint8_t *)data;
  if (length < HEADER || length - HEADER > limit || at[0] != 'm' || at[1] != 'C' || at[2] != DATA || at[3])
    Py_RETURN_NONE;
  if (get(at + 4, 4) != epoch || get(at + 8, 8) != number || number > MOST_NUMBER) Py_RETURN_NONE;
  uint64_t ack = get(at + 16, 8);
  if (ack > MOST_NUMBER) Py_RETURN_NONE;
  PyObject *field[] = {
      PyLong_FromUnsignedLongLong(ack),
      PyBytes_FromStringAndSize(data + HEADER, length - HEADER),
  };
  PyObject *found = PyTuple_New(2);
  for (int i = 0; i < 2; i++) {
    if (!field[i]) Py_CLEAR(found);
    if (found) PyTuple_SetItem(found, i, field[i]);
    else Py_XDECREF(field[i]);
  }
  return found;
}

static PyMethodDef functions[] = {
    {"encode", (PyCFunction)(void (*)(void))encode, METH_FASTCALL, "Return a frame as bytes."},
    {"glance", (PyCFunction)(void (*)(void))glance, METH_FASTCALL,
     "Return ack and payload of the DATA frame with this epoch and number and at most limit bytes; None for all else."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "_frame", .m_methods = functions, .m_slots = slots};

PyMODINIT_FUNC PyInit__frame(void) { return PyModuleDef_Init(&module); }
