// The border between C++ and C: nothing is thrown past it.
#pragma once

#include <exception>
#include <new>

#include "fdma/status.h"
#include "host/error.hpp"

namespace fdma {

// Keeps `text` as this thread's last error message.
void set_last_error(const char* text) noexcept;

// Runs one entry point; what it throws becomes a status and this thread's last error message.
template <typename Body>
fdma_status guard(Body&& body) noexcept {
  try {
    body();
    return FDMA_SUCCESS;
  } catch (const Error& error) {
    set_last_error(error.what());
    return error.status();
  } catch (const std::bad_alloc&) {
    set_last_error("out of host memory");
    return FDMA_INTERNAL_ERROR;
  } catch (const std::exception& error) {
    set_last_error(error.what());
    return FDMA_INTERNAL_ERROR;
  } catch (...) {
    set_last_error("an exception of unknown type");
    return FDMA_INTERNAL_ERROR;
  }
}

// A pointer argument that the call cannot do without.
template <typename T>
T& deref(T* pointer, const char* message) {
  if (pointer == nullptr) throw Error(FDMA_INVALID_ARGUMENT, message);
  return *pointer;
}

}  // namespace fdma
