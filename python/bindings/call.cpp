#include "call.hpp"

namespace fdma::python {

Scratch::Scratch(size_t bytes, fdma_device device, nb::handle like, nb::handle allocate) {
  if (bytes == 0) return;
  if (device.type == FDMA_DEVICE_CPU) {
    host_.reset(::operator new(bytes, kAlignment));
    data_ = host_.get();
  } else {
    tensor_ = allocate(like, bytes);
    data_ = read_tensor(tensor_, "workspace").tensor.data;
  }
}

fdma_tensor read_on(fdma_device device, nb::handle object, const char* name, DtypeSet dtypes, const char* of) {
  const TensorView view = read_tensor(object, name, dtypes);
  check_same_device(view, name, device, of);
  return view.tensor;
}

fdma_tensor read_optional(fdma_device device, nb::handle object, const char* name, DtypeSet dtypes, const char* of) {
  return object.is_none() ? fdma_tensor{} : read_on(device, object, name, dtypes, of);
}

}  // namespace fdma::python
