#include "error.hpp"

#include <nanobind/nanobind.h>

#include <string>
#include <utility>

namespace fdma::python {
namespace {

// What the messages of the C API call things, and the words of the Python signature for them.
constexpr std::pair<const char*, const char*> kWords[] = {
    {"mask.tensor", "attn_mask"},
    {"bias.tensor", "attn_bias"},
    {".rank is", ".dim() is"},
    {".stride is", ".stride() is"},
    {"FDMA_SCALE_DEFAULT", "None"},
    {"FDMA_DEVICE_CPU", "CPU tensors"},
    {"a library configured with -DFDMA_CUDA=ON", "pip install . -C cmake.define.FDMA_CUDA=ON"},
};

void replace_all(std::string& text, const std::string& from, const std::string& to) {
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) {
    text.replace(at, from.size(), to);
  }
}

PyObject* exception_type(fdma_status status) {
  if (status == FDMA_INVALID_DTYPE) return PyExc_TypeError;
  return status >= FDMA_INVALID_ARGUMENT && status < FDMA_UNSUPPORTED ? PyExc_ValueError : PyExc_RuntimeError;
}

}  // namespace

std::string last_message() {
  std::string message = fdma_last_error_message();
  for (const auto& [from, to] : kWords) replace_all(message, from, to);
  return message;
}

void check(fdma_status status, Names names) {
  if (status == FDMA_SUCCESS) return;
  std::string message = last_message();
  for (const auto& [from, to] : names) replace_all(message, from, to);
  PyErr_SetString(exception_type(status), message.c_str());
  throw nanobind::python_error();
}

}  // namespace fdma::python
