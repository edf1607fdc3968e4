#include "scalar.hpp"

#include <string>

namespace fdma::python {

namespace nb = nanobind;

namespace {

[[noreturn]] void raise_type(const char* name, const char* accepted, nb::handle object) {
  throw nb::type_error(
      (std::string(name) + " must be " + accepted + " or None, got " + nb::repr(object).c_str()).c_str());
}

}  // namespace

float number_or(nb::handle object, const char* name, float otherwise) {
  if (object.is_none()) return otherwise;
  if (PyFloat_Check(object.ptr())) return static_cast<float>(PyFloat_AsDouble(object.ptr()));
  const bool is_number = PyNumber_Check(object.ptr()) && !PyBool_Check(object.ptr()) && !nb::hasattr(object, "is_cuda");
  if (!is_number) raise_type(name, "a real number", object);
  const double number = PyFloat_AsDouble(object.ptr());
  if (number == -1.0 && PyErr_Occurred()) throw nb::python_error();
  return static_cast<float>(number);
}

bool flag_or(nb::handle object, const char* name, bool otherwise) {
  if (object.is_none()) return otherwise;
  if (!PyBool_Check(object.ptr())) raise_type(name, "a bool", object);
  return object.ptr() == Py_True;
}

}  // namespace fdma::python
