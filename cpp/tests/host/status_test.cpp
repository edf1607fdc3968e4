// Statuses, messages, versions and devices, as a C caller sees them.
#include "fdma/status.h"

#include <gtest/gtest.h>

#include <new>
#include <string>
#include <thread>

#include "api/guard.hpp"
#include "fdma/device.h"
#include "fdma/version.h"

namespace fdma::testing {
namespace {

TEST(Status, Names) {
  EXPECT_STREQ(fdma_status_name(FDMA_SUCCESS), "FDMA_SUCCESS");
  EXPECT_STREQ(fdma_status_name(FDMA_INVALID_WORKSPACE), "FDMA_INVALID_WORKSPACE");
  EXPECT_STREQ(fdma_status_name(static_cast<fdma_status>(1234)), "FDMA_UNKNOWN_STATUS");
}

TEST(Guard, TurnsExceptionsIntoStatusAndMessage) {
  EXPECT_EQ(guard([] {}), FDMA_SUCCESS);
  EXPECT_EQ(guard([] { throw Error(FDMA_CUDA_ERROR, "launch failed"); }), FDMA_CUDA_ERROR);
  EXPECT_STREQ(fdma_last_error_message(), "launch failed");
  EXPECT_EQ(guard([] { throw std::bad_alloc(); }), FDMA_INTERNAL_ERROR);
  EXPECT_STREQ(fdma_last_error_message(), "out of host memory");
  EXPECT_EQ(guard([] { throw std::logic_error("broken invariant"); }), FDMA_INTERNAL_ERROR);
  EXPECT_STREQ(fdma_last_error_message(), "broken invariant");
  EXPECT_EQ(guard([] { throw 1; }), FDMA_INTERNAL_ERROR);
  EXPECT_STREQ(fdma_last_error_message(), "an exception of unknown type");
}

TEST(LastErrorMessage, BelongsToTheThreadAndOutlivesSuccess) {
  guard([] { throw Error(FDMA_INVALID_ARGUMENT, "of the main thread"); });
  std::thread([] {
    EXPECT_STREQ(fdma_last_error_message(), "");
    guard([] { throw Error(FDMA_INVALID_ARGUMENT, "of another thread"); });
    EXPECT_STREQ(fdma_last_error_message(), "of another thread");
  }).join();
  EXPECT_STREQ(fdma_last_error_message(), "of the main thread");
  EXPECT_EQ(guard([] {}), FDMA_SUCCESS);
  EXPECT_STREQ(fdma_last_error_message(), "of the main thread");
}

TEST(Version, AgreesWithTheHeader) {
  EXPECT_EQ(fdma_version(), FDMA_VERSION_MAJOR * 10000 + FDMA_VERSION_MINOR * 100 + FDMA_VERSION_PATCH);
  EXPECT_EQ(std::string(fdma_build_info()).rfind("libfdma " + std::to_string(FDMA_VERSION_MAJOR) + ".", 0), 0u);
}

TEST(Device, Cpu) {
  EXPECT_EQ(fdma_device_supported({FDMA_DEVICE_CPU, 0}), FDMA_SUCCESS);
  EXPECT_EQ(fdma_device_supported({FDMA_DEVICE_CPU, 3}), FDMA_INVALID_ARGUMENT);
  EXPECT_STREQ(fdma_last_error_message(), "device.index is 3; accepted for the CPU: 0");
}

TEST(Device, UnknownType) {
  EXPECT_EQ(fdma_device_supported({static_cast<fdma_device_type>(0), 0}), FDMA_INVALID_ARGUMENT);
  EXPECT_STREQ(fdma_last_error_message(), "device.type is 0; accepted: FDMA_DEVICE_CPU (1), FDMA_DEVICE_CUDA (2)");
}

TEST(Device, CudaOfABuildWithoutCuda) {
  if (fdma_cuda_built()) GTEST_SKIP() << "this build has CUDA";
  EXPECT_EQ(fdma_device_supported({FDMA_DEVICE_CUDA, 0}), FDMA_UNSUPPORTED_DEVICE);
  const std::string message = fdma_last_error_message();
  EXPECT_EQ(message.rfind("device is CUDA, but this libfdma was built without CUDA (", 0), 0u) << message;
  EXPECT_NE(message.find("-DFDMA_CUDA=ON"), std::string::npos) << message;
}

}  // namespace
}  // namespace fdma::testing
