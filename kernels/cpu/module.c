/* The Python module `_planes`. It takes addresses and sizes; compiled.py checks everything before. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>

#include "planes.h"

static void *address(Py_ssize_t number) { return (void *)(intptr_t)number; }

/* A matrix from the tuple that `_matrix` in compiled.py makes; 0 with an exception set where it is none. */
static int read_matrix(PyObject *told, Matrix *a) {
    Py_ssize_t words, scales, zeros, fields, lows_given;
    const char *widths, *lows;
    memset(a, 0, sizeof *a);
    if (!PyArg_ParseTuple(told, "nnny#y#nnnninnn:matrix", &words, &a->block_stride, &a->row_stride, &widths, &fields, &lows,
                          &lows_given, &a->inputs, &a->outputs, &scales, &zeros, &a->number_type, &a->group_stride, &a->zero_stride,
                          &a->group_size))
        return 0;
    if (fields != lows_given || fields > 8) {
        PyErr_SetString(PyExc_ValueError, "a code has at most eight fields, each with a lowest bit");
        return 0;
    }
    a->words = address(words), a->scales = address(scales), a->zeros = address(zeros);
    for (Py_ssize_t f = 0; f < fields; f++)
        add_field(a, widths[f], lows[f]);
    return 1;
}

static PyObject *py_product(PyObject *self, PyObject *args) {
    Matrix a;
    PyObject *told;
    Py_ssize_t x, rows, y, begin, end;
    int kind, as_bytes, done;
    if (!PyArg_ParseTuple(args, "iinnnnnO:product", &kind, &as_bytes, &x, &rows, &y, &begin, &end, &told) || !read_matrix(told, &a))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    done = product(SETS[kind].set, &a, address(x), rows, as_bytes, begin, end, address(y));
    Py_END_ALLOW_THREADS
    return done ? Py_BuildValue("") : PyErr_NoMemory();
}

static PyObject *py_dequantize(PyObject *self, PyObject *args) {
    Matrix a;
    PyObject *told;
    Py_ssize_t out, begin, end, minus;
    int kind, as_bf16;
    Minus less;
    if (!PyArg_ParseTuple(args, "inninnnO:dequantize", &kind, &minus, &less.stride, &as_bf16, &out, &begin, &end, &told) ||
        !read_matrix(told, &a))
        return NULL;
    less.numbers = address(minus);
    Py_BEGIN_ALLOW_THREADS
    SETS[kind].set->dequantize(&a, begin, end, &less, as_bf16, address(out));
    Py_END_ALLOW_THREADS
    return Py_BuildValue("");
}

static PyObject *py_experts(PyObject *self, PyObject *args) {
    Experts e;
    PyObject *told;
    Py_ssize_t x, y, begin, end, base, bits, order, ends;
    int kind, done;
    if (!PyArg_ParseTuple(args, "innnnnnnnnnO:experts", &kind, &x, &y, &begin, &end, &e.count, &e.slots, &base, &bits, &order,
                          &ends, &told) ||
        !read_matrix(told, &e.matrix))
        return NULL;
    e.base = address(base), e.bits = address(bits), e.order = address(order), e.ends = address(ends);
    Py_BEGIN_ALLOW_THREADS
    done = experts(SETS[kind].set, &e, address(x), begin, end, address(y));
    Py_END_ALLOW_THREADS
    return done ? Py_BuildValue("") : PyErr_NoMemory();
}

static PyObject *py_instruction_sets(PyObject *self, PyObject *args) {
    PyObject *names = PyList_New(0);
    for (int kind = 0; names != NULL && kind < KINDS; kind++) {
        PyObject *pair = Py_BuildValue("(is)", kind, SETS[kind].name);
        if (pair == NULL || (runs(kind) && PyList_Append(names, pair) < 0))
            Py_CLEAR(names);
        Py_XDECREF(pair);
    }
    return names;
}

static PyMethodDef METHODS[] = {
    {"product", py_product, METH_VARARGS, "y += x W^T for some outputs."},
    {"dequantize", py_dequantize, METH_VARARGS, "The numbers of W, transposed, less others, for some outputs."},
    {"experts", py_experts, METH_VARARGS, "Each row of x times the matrix of the expert it was given, for some outputs."},
    {"instruction_sets", py_instruction_sets, METH_NOARGS, "(number, name) of the sets that this processor runs, best first."},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_planes", "Products with packed words.", -1, METHODS, 0, 0, 0, 0};
PyMODINIT_FUNC PyInit__planes(void) { return PyModule_Create(&MODULE); }
