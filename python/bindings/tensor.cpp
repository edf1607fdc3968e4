#include "tensor.hpp"

#include <nanobind/ndarray.h>

#include <string>

namespace fdma::python {
namespace {

using DlTensor = nb::dlpack::dltensor;
using DlDtype = nb::dlpack::dtype;
using DlCode = nb::dlpack::dtype_code;

// Table behind `type(tensor).__dlpack_c_exchange_api__` (DLPack 1.2, torch >= 2.10): exports a view without allocating
// and whatever the tensor's autograd state. Members that are not called here have the type of any function.
struct ExchangeApi {
  uint32_t version_major;
  uint32_t version_minor;
  const ExchangeApi* previous;
  void (*managed_tensor_allocator)();
  void (*managed_tensor_from_py_object)();
  void (*managed_tensor_to_py_object)();
  int (*dltensor_from_py_object)(void* object, DlTensor* out);
  int (*current_work_stream)(int32_t device_type, int32_t device_index, void** stream);
};

constexpr uint32_t kDlpackMajor = 1;
constexpr const char* kExchangeApiCapsule = "dlpack_exchange_api";

// Interned once: attribute look-ups with them hash nothing.
struct Names {
  PyObject* exchange_api = PyUnicode_InternFromString("__dlpack_c_exchange_api__");
  PyObject* is_neg = PyUnicode_InternFromString("is_neg");
};

const Names& names() {
  static const Names instance;
  return instance;
}

std::string text_of(nb::handle object) { return nb::str(object).c_str(); }

std::string type_of(nb::handle object) { return text_of(object.type().attr("__name__")); }

nb::object attribute_or_none(nb::handle object, PyObject* name) {
  PyObject* found = PyObject_GetAttr(object.ptr(), name);
  if (found == nullptr) {
    PyErr_Clear();
    return nb::none();
  }
  return nb::steal(found);
}

// Null when the type has no exchange API that this code understands.
const ExchangeApi* exchange_api(nb::handle type) {
  const nb::object capsule = attribute_or_none(type, names().exchange_api);
  if (!PyCapsule_IsValid(capsule.ptr(), kExchangeApiCapsule)) return nullptr;
  auto* api = static_cast<const ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), kExchangeApiCapsule));
  while (api != nullptr && api->version_major != kDlpackMajor) api = api->previous;
  return api != nullptr && api->dltensor_from_py_object != nullptr ? api : nullptr;
}

[[noreturn]] void raise_unreadable(nb::handle object, const char* name, const std::string& reason) {
  throw nb::value_error((std::string(name) + " (" + type_of(object) + ") cannot be read: " + reason +
                         "; a strided tensor on the CPU or on a CUDA device is accepted")
                            .c_str());
}

// First line of the Python exception that is set, which is cleared. Below it torch puts its C++ stack.
std::string take_python_error() {
  const nb::python_error error;
  const std::string text = text_of(error.value());
  return text.substr(0, text.find('\n'));
}

fdma_dtype dtype_from_dlpack(DlDtype dtype, DtypeSet accepted) {
  if (dtype.lanes != 1) return FDMA_DTYPE_NONE;
  switch (static_cast<DlCode>(dtype.code)) {
    case DlCode::Float:
      return dtype.bits == 16   ? FDMA_FLOAT16
             : dtype.bits == 32 ? FDMA_FLOAT32
             : dtype.bits == 64 ? FDMA_FLOAT64
                                : FDMA_DTYPE_NONE;
    case DlCode::Bfloat:
      return dtype.bits == 16 ? FDMA_BFLOAT16 : FDMA_DTYPE_NONE;
    case DlCode::Bool:
      return FDMA_BOOL;
    case DlCode::UInt:
      if (dtype.bits == 8) return FDMA_UINT8;
      if (accepted != DtypeSet::kMask) return FDMA_DTYPE_NONE;
      [[fallthrough]];
    case DlCode::Int:
      return dtype.bits == 8    ? FDMA_INT8
             : dtype.bits == 16 ? FDMA_INT16
             : dtype.bits == 32 ? FDMA_INT32
             : dtype.bits == 64 ? FDMA_INT64
                                : FDMA_DTYPE_NONE;
    default:
      return FDMA_DTYPE_NONE;
  }
}

const char* accepted_text(DtypeSet dtypes) {
  switch (dtypes) {
    case DtypeSet::kMask:
      return "bool, integers, float16, bfloat16, float32, float64";
    case DtypeSet::kOffsets:
      return "int32, int64";
    case DtypeSet::kPages:
      return "int32";
    case DtypeSet::kNumbers:
      break;
  }
  return "float16, bfloat16, float32 (for query, key and value on the CPU only)";
}

fdma_device device_from_dlpack(nb::dlpack::device device) {
  switch (device.device_type) {
    case nb::device::cpu::value:
    case nb::device::cuda_host::value:  // pinned memory
      return {FDMA_DEVICE_CPU, 0};
    case nb::device::cuda::value:
    case nb::device::cuda_managed::value:
      return {FDMA_DEVICE_CUDA, device.device_id};
    default:
      return {};
  }
}

// torch before 2.10: the same facts through the attributes of the tensor. (`__dlpack__` would copy the caller's
// obligations, detaching and stream order, and costs more.)
struct Attributes {
  int64_t shape[FDMA_MAX_RANK];
  int64_t strides[FDMA_MAX_RANK];
  DlTensor view;

  explicit Attributes(nb::handle object) {
    const nb::object size = object.attr("shape");
    const nb::object stride = object.attr("stride")();
    view.ndim = static_cast<int32_t>(nb::len(size));
    for (int32_t i = 0; i < view.ndim && i < FDMA_MAX_RANK; ++i) {
      shape[i] = nb::cast<int64_t>(size[i]);
      strides[i] = nb::cast<int64_t>(stride[i]);
    }
    view.shape = shape;
    view.strides = strides;
    view.dtype = dtype(text_of(object.attr("dtype")));
    const nb::object device = object.attr("device");
    const std::string device_type = text_of(device.attr("type"));
    const nb::object index = device.attr("index");
    view.device.device_type = device_type == "cpu"    ? nb::device::cpu::value
                              : device_type == "cuda" ? nb::device::cuda::value
                                                      : nb::device::none::value;
    view.device.device_id = index.is_none() ? 0 : nb::cast<int32_t>(index);
    if (view.device.device_type == nb::device::none::value) return;  // has no pointer to ask for
    view.data = reinterpret_cast<void*>(nb::cast<uintptr_t>(object.attr("data_ptr")()));
  }

  static DlDtype dtype(const std::string& text) {
    static const struct {
      const char* name;
      DlCode code;
      uint8_t bits;
    } known[] = {{"torch.float16", DlCode::Float, 16}, {"torch.bfloat16", DlCode::Bfloat, 16},
                 {"torch.float32", DlCode::Float, 32}, {"torch.float64", DlCode::Float, 64},
                 {"torch.bool", DlCode::Bool, 8},      {"torch.uint8", DlCode::UInt, 8},
                 {"torch.uint16", DlCode::UInt, 16},   {"torch.uint32", DlCode::UInt, 32},
                 {"torch.uint64", DlCode::UInt, 64},   {"torch.int8", DlCode::Int, 8},
                 {"torch.int16", DlCode::Int, 16},     {"torch.int32", DlCode::Int, 32},
                 {"torch.int64", DlCode::Int, 64}};
    for (const auto& entry : known) {
      if (text == entry.name) return {static_cast<uint8_t>(entry.code), entry.bits, 1};
    }
    return {};
  }
};

TensorView describe(nb::handle object, const char* name, const DlTensor& source, DtypeSet dtypes) {
  TensorView view;
  view.device = device_from_dlpack(source.device);
  if (view.device.type == 0) {
    raise_unreadable(object, name, "it is on " + text_of(object.attr("device")));
  }
  view.tensor.dtype = dtype_from_dlpack(source.dtype, dtypes);
  if (view.tensor.dtype == FDMA_DTYPE_NONE) {
    throw nb::type_error(
        (std::string(name) + ".dtype is " + text_of(object.attr("dtype")) + "; accepted: " + accepted_text(dtypes))
            .c_str());
  }
  if (source.ndim < 1 || source.ndim > FDMA_MAX_RANK) {
    throw nb::value_error((std::string(name) + " has " + std::to_string(source.ndim) + " dimensions; 1 to " +
                           std::to_string(FDMA_MAX_RANK) + " are accepted")
                              .c_str());
  }
  view.tensor.rank = source.ndim;
  view.tensor.data = static_cast<char*>(source.data) + source.byte_offset;
  for (int32_t i = 0; i < source.ndim; ++i) {
    view.tensor.shape[i] = source.shape[i];
    view.tensor.stride[i] = source.strides[i];
  }
  return view;
}

// torch keeps the sign of `x.conj().imag` in a flag that no view carries; reading the memory would flip the values.
void refuse_lazy_negation(nb::handle object, const char* name) {
  const nb::object flag = nb::steal(PyObject_CallMethodObjArgs(object.ptr(), names().is_neg, nullptr));
  if (!flag.is_valid()) throw nb::python_error();
  if (flag.ptr() == Py_True) {
    throw nb::value_error(
        (std::string(name) + " is a lazily negated view (is_neg() is True); pass " + name + ".resolve_neg()").c_str());
  }
}

}  // namespace

TensorView read_tensor(nb::handle object, const char* name, DtypeSet dtypes) {
  const ExchangeApi* api = exchange_api(object.type());
  if (api == nullptr) {
    if (!nb::hasattr(object, "data_ptr")) {
      throw nb::type_error((std::string(name) + " must be a torch.Tensor, got " + type_of(object)).c_str());
    }
    refuse_lazy_negation(object, name);
    const Attributes attributes(object);
    return describe(object, name, attributes.view, dtypes);
  }
  refuse_lazy_negation(object, name);
  DlTensor source;
  if (api->dltensor_from_py_object(object.ptr(), &source) != 0) raise_unreadable(object, name, take_python_error());
  return describe(object, name, source, dtypes);
}

void check_same_device(const TensorView& view, const char* name, fdma_device device, const char* of) {
  if (view.device.type == device.type && view.device.index == device.index) return;
  const auto text = [](fdma_device d) {
    return d.type == FDMA_DEVICE_CPU ? std::string("cpu") : "cuda:" + std::to_string(d.index);
  };
  throw nb::value_error((std::string(name) + " is on " + text(view.device) + " and " + of + " on " + text(device) +
                         "; all tensors of a call must be on one device")
                            .c_str());
}

}  // namespace fdma::python
