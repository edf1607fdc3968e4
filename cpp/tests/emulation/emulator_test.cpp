// That the emulation can fail: small kernels that do what a GPU does not forgive, and some that are right at one time
// of what is asynchronous only.
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "tests/emulation/machine/instructions.hpp"

namespace fdma::emulation {
namespace {

constexpr int kThreads = 128;
constexpr int kSharedBytes = 32 * 1024;

class SmallKernels : public testing::Test {
 protected:
  // One block. Shared memory from `shared_` on.
  void run_block(const std::function<void()>& body) {
    run("small_kernel", dim3(1), dim3(kThreads), kSharedBytes, body);
  }
  // What the block fails with.
  std::string failure(const std::function<void()>& body) {
    try {
      run_block(body);
    } catch (const EmulationError& error) {
      return error.what();
    }
    return "";
  }

  const uint32_t shared_ = shared_address(dynamic_shared_memory());
};

class Emulator : public SmallKernels, public testing::WithParamInterface<Timing> {
 protected:
  void SetUp() override { set_timing(GetParam()); }
  void TearDown() override { set_timing(Timing::kEarly); }
};

// Of an operand with rows of 64 elements, which are summed.
uint64_t descriptor(uint32_t address) {
  return uint64_t{1} << 62 | uint64_t{1024 >> 4} << 32 | uint64_t{1} << 16 | address >> 4;
}

#define EXPECT_CONTAINS(text, part) EXPECT_NE((text).find(part), std::string::npos) << (text)

// Operands of 64 rows at `address` and behind it, of ones in bfloat16, by the threads of a block.
void store_ones(uint32_t address) {
  for (uint32_t i = 0; i < 128; i += 16) {
    const uint32_t ones = 0x3f803f80;
    store_shared(address + threadIdx.x * 128 + i, ones, ones, ones, ones);
  }
}

TEST_P(Emulator, RunsAllThreads) {
  std::vector<int> seen(3 * kThreads, 0);
  run("small_kernel", dim3(3), dim3(kThreads), 0, [&] { ++seen[blockIdx.x * kThreads + threadIdx.x]; });
  EXPECT_EQ(seen, std::vector<int>(seen.size(), 1));
}

TEST_P(Emulator, NamesTheThread) {
  const std::string what = failure([&] {
    if (threadIdx.x == 37) mbarrier_arrive(shared_);
  });
  EXPECT_CONTAINS(what, "no mbarrier at address 1024 in small_kernel, block 0 0 0, thread 37");
}

TEST_P(Emulator, RunsAfterAFailure) {
  EXPECT_NE(failure([&] { barrier_sync(1, kThreads + 32); }), "");
  EXPECT_EQ(failure([&] { barrier_sync(1, kThreads); }), "");
}

TEST_P(Emulator, FindsAnArrivalTooMany) {
  const std::string what = failure([&] {
    if (threadIdx.x != 0) return;
    mbarrier_init(shared_, 1);
    mbarrier_arrive_expect(shared_, 16);
    mbarrier_arrive(shared_);
  });
  EXPECT_CONTAINS(what, "an arrival too many at the mbarrier at address 1024");
}

TEST_P(Emulator, FindsBytesThatNeverCome) {
  alignas(16) static const char source[16] = {};
  const std::string what = failure([&] {
    if (threadIdx.x == 0) {
      mbarrier_init(shared_, 1);
      publish_barriers();
      mbarrier_arrive_expect(shared_, 32);
      load_bytes(shared_ + 16, source, 16, shared_);
    }
    barrier_sync(0, kThreads);
    mbarrier_wait(shared_, 0);
  });
  EXPECT_CONTAINS(what, "deadlock");
  EXPECT_CONTAINS(what, "warp 3 from lane 0 on waits for mbarrier 1024");
}

TEST_P(Emulator, FindsBytesThatNobodyWaitsFor) {
  const std::string what = failure([&] {
    if (threadIdx.x != 0) return;
    mbarrier_init(shared_, 1);
    mbarrier_arrive_expect(shared_, 32);
  });
  EXPECT_CONTAINS(what, "still expects 32 bytes");
}

TEST_P(Emulator, FindsThreadsThatWaitForDifferentBarriers) {
  const std::string what = failure([&] { barrier_sync(threadIdx.x < 64 ? 1 : 2, kThreads); });
  EXPECT_CONTAINS(what, "warp 1 from lane 0 on waits for named barrier 1");
  EXPECT_CONTAINS(what, "warp 2 from lane 0 on waits for named barrier 2");
}

TEST_P(Emulator, FindsALaneThatIsAway) {
  const std::string what = failure([&] {
    char all[32];
    if (threadIdx.x != 5) exchange(0xffffffffu, "", all, 1);
  });
  EXPECT_CONTAINS(what, "deadlock");
}

TEST_P(Emulator, FindsMisalignedAddresses) {
  EXPECT_CONTAINS(failure([&] { store_shared(shared_ + 2, 1.0f); }), "misaligned address 1026");
  EXPECT_CONTAINS(failure([&] { store_shared(shared_ + 8, 1.0f, 1.0f, 1.0f, 1.0f); }), "misaligned address 1032");
}

TEST_P(Emulator, FindsAddressesOutsideOfSharedMemory) {
  EXPECT_CONTAINS(failure([&] { store_shared(shared_ + kSharedBytes, 1.0f); }), "outside of the shared memory");
  EXPECT_CONTAINS(failure([&] { store_shared(0, 1.0f); }), "outside of the shared memory");
}

TEST_P(Emulator, FindsThreadsThatDifferInAProduct) {
  std::vector<float> sums(kThreads * 32);
  const std::string what = failure([&] {
    const uint64_t descriptor = uint64_t{1} << 62 | ((shared_ >> 4) + (threadIdx.x == 9 ? 2 : 0));
    fence_products();
    start_product({&sums[threadIdx.x * 32], nullptr, descriptor, descriptor, false, false, true, false, 64});
  });
  EXPECT_CONTAINS(what, "threads of a warpgroup differ in a product");
  EXPECT_CONTAINS(what, "thread 9");
}

TEST_P(Emulator, FindsStoresThatNobodyCommits) {
  alignas(16) float target[4] = {};
  const std::string what = failure([&] {
    if (threadIdx.x != 0) return;
    store_shared(shared_, 1.0f, 1.0f, 1.0f, 1.0f);
    fence_async();
    add_floats(target, shared_, 16);
  });
  EXPECT_CONTAINS(what, "never committed");
}

// A GPU may do these as they are meant. At each time here they fail.

TEST_P(Emulator, FindsAProductOfWhatIsNotPublished) {
  std::vector<float> sums(kThreads * 32, 0.0f);
  const auto product = [&](bool all_fence) {
    return failure([&] {
      store_ones(shared_);
      if (all_fence || threadIdx.x != 70) fence_async();
      barrier_sync(0, kThreads);
      fence_products();
      start_product({&sums[threadIdx.x * 32], nullptr, descriptor(shared_), descriptor(shared_ + 64 * 128), false,
                     false, true, true, 64});
      commit_products();
      wait_products(0);
    });
  };
  EXPECT_CONTAINS(product(false), "which thread 70 has written without fence.proxy.async");
  EXPECT_EQ(product(true), "");
}

TEST_P(Emulator, FindsAWriteBehindTheFence) {
  alignas(16) float target[4] = {};
  const std::string what = failure([&] {
    if (threadIdx.x != 0) return;
    store_shared(shared_, 1.0f, 1.0f, 1.0f, 1.0f);
    fence_async();
    store_shared(shared_ + 8, 2.0f);
    add_floats(target, shared_, 16);
    commit_stores();
    wait_stores(0);
  });
  EXPECT_CONTAINS(what, "which thread 0 has written without fence.proxy.async");
}

TEST_P(Emulator, FindsACopyOverWhatIsNotPublished) {
  alignas(16) static const float source[4] = {};
  const std::string what = failure([&] {
    if (threadIdx.x != 0) return;
    mbarrier_init(shared_, 1);
    publish_barriers();
    store_shared(shared_ + 16, 1.0f);
    mbarrier_arrive_expect(shared_, 16);
    load_bytes(shared_ + 16, source, 16, shared_);
    mbarrier_wait(shared_, 0);
  });
  EXPECT_CONTAINS(what, "which thread 0 has written without fence.proxy.async");
}

TEST_P(Emulator, FindsABarrierThatIsNotPublished) {
  alignas(16) static const float source[4] = {};
  const std::string what = failure([&] {
    if (threadIdx.x != 0) return;
    mbarrier_init(shared_, 1);
    mbarrier_arrive_expect(shared_, 16);
    load_bytes(shared_ + 16, source, 16, shared_);
    mbarrier_wait(shared_, 0);
  });
  EXPECT_CONTAINS(what, "without fence.mbarrier_init");
}

TEST_P(Emulator, FindsProductsWithoutTheirFence) {
  std::vector<float> sums(kThreads * 32, 0.0f);
  const std::string what = failure([&] {
    const auto multiply = [&] {
      start_product({&sums[threadIdx.x * 32], nullptr, descriptor(shared_), descriptor(shared_ + 64 * 128), false,
                     false, true, true, 64});
      commit_products();
      wait_products(0);
    };
    fence_products();
    multiply();
    sums[threadIdx.x * 32] = 0.0f;
    multiply();
  });
  EXPECT_CONTAINS(what, "a product without wgmma.fence");
}

TEST_P(Emulator, FindsAReleaseBeforeStoresAreWritten) {
  alignas(16) float target[4] = {};
  int counter = 0;
  const auto release = [&](void (*wait)(int)) {
    return failure([&] {
      if (threadIdx.x != 0) return;
      store_shared(shared_, 1.0f, 1.0f, 1.0f, 1.0f);
      fence_async();
      add_floats(target, shared_, 16);
      commit_stores();
      wait(0);
      reduce_add(&counter, 1);
    });
  };
  EXPECT_CONTAINS(release([](int) {}), "a release of stores that may not be written yet");
  EXPECT_CONTAINS(release(wait_stores_read), "a release of stores that may not be written yet");
  EXPECT_EQ(release(wait_stores), "");
}

// The rest is wrong on a GPU, sometimes. Here one of the three times shows it.

TEST_P(Emulator, TimesProducts) {
  std::vector<float> sums(kThreads * 32, 0.0f), early(kThreads), final(kThreads);
  run_block([&] {
    const uint32_t a = shared_, b = shared_ + 64 * 128;
    store_ones(a);
    fence_async();
    barrier_sync(0, kThreads);
    float* mine = &sums[threadIdx.x * 32];
    fence_products();
    start_product({mine, nullptr, descriptor(a), descriptor(b), false, false, true, true, 64});
    commit_products();
    barrier_sync(0, kThreads);
    early[threadIdx.x] = mine[31];
    barrier_sync(0, kThreads);  // the first thread that waits lets the product be done
    wait_products(0);
    final[threadIdx.x] = mine[31];
  });
  EXPECT_EQ(final, std::vector<float>(kThreads, 16.0f));
  EXPECT_EQ(early, std::vector<float>(kThreads, GetParam() == Timing::kEarly ? 16.0f : 0.0f));
}

TEST_P(Emulator, TimesCopies) {
  alignas(16) static const float source[4] = {1, 2, 3, 4};
  float early = 0, final = 0;
  run_block([&] {
    if (threadIdx.x != 0) return;
    mbarrier_init(shared_, 1);
    publish_barriers();
    store_shared(shared_ + 16, 0.0f, 0.0f, 0.0f, 0.0f);
    fence_async();
    mbarrier_arrive_expect(shared_, 16);
    load_bytes(shared_ + 16, source, 16, shared_);
    load_shared(early, shared_ + 28);
    mbarrier_wait(shared_, 0);
    load_shared(final, shared_ + 28);
  });
  EXPECT_EQ(final, 4.0f);
  EXPECT_EQ(early, GetParam() == Timing::kLateCopies ? 0.0f : 4.0f);
}

TEST_P(Emulator, TimesStores) {
  alignas(16) float target[4] = {};
  run_block([&] {
    if (threadIdx.x != 0) return;
    store_shared(shared_, 1.0f, 1.0f, 1.0f, 1.0f);
    fence_async();
    add_floats(target, shared_, 16);
    commit_stores();
    store_shared(shared_, 2.0f, 2.0f, 2.0f, 2.0f);  // too early: the addition may still read
    fence_async();
    wait_stores(0);
  });
  EXPECT_EQ(target[0], GetParam() == Timing::kEarly ? 1.0f : 2.0f);
}

TEST_P(Emulator, TimesCopiesOfAThread) {
  static const float source[1] = {3};
  float early = 0, final = 0;
  run_block([&] {
    if (threadIdx.x != 0) return;
    store_shared(shared_, 0.0f);
    copy_async(shared_, source, 4, 4);
    commit_copies();
    load_shared(early, shared_);
    wait_copies(0);
    load_shared(final, shared_);
  });
  EXPECT_EQ(final, 3.0f);
  EXPECT_EQ(early, GetParam() == Timing::kLateCopies ? 0.0f : 3.0f);
}

// Consumers that give a buffer back before their product has read it. Only late products show it, with copies that come
// at once.
TEST_P(Emulator, TimesBuffersThatAreGivenBack) {
  std::vector<float> sums(kThreads * 32, 0.0f);
  alignas(16) static const uint16_t zeros[64 * 64] = {};
  const auto work = [&] {
    const uint32_t full = shared_, empty = shared_ + 8, a = shared_ + 1024, b = a + 64 * 128;
    const bool is_producer = threadIdx.x == kThreads;
    if (is_producer) {
      mbarrier_init(full, 1);
      mbarrier_init(empty, kThreads);
      publish_barriers();
    } else if (threadIdx.x < kThreads) {
      store_ones(a);
      fence_async();
    }
    barrier_sync(0, kThreads + 32);
    if (is_producer) {
      mbarrier_wait(empty, 0);
      mbarrier_arrive_expect(full, sizeof(zeros));
      load_bytes(b, zeros, sizeof(zeros), full);
    } else if (threadIdx.x < kThreads) {
      fence_products();
      start_product({&sums[threadIdx.x * 32], nullptr, descriptor(a), descriptor(b), false, false, true, true, 64});
      commit_products();
      mbarrier_arrive(empty);  // belongs behind the wait
      wait_products(0);
      mbarrier_wait(full, 0);
    }
  };
  const auto run_it = [&] { run("small_kernel", dim3(1), dim3(kThreads + 32), kSharedBytes, work); };
  if (GetParam() == Timing::kEarly) {  // the result would be right, but races are looked for
    EXPECT_THROW(run_it(), EmulationError);
    return;
  }
  run_it();
  EXPECT_EQ(sums[0], GetParam() == Timing::kLateProducts ? 0.0f : 16.0f);
}

// Lanes that each wait for every phase, while one of them tells the others' partner to go on: a lane that falls behind
// by two phases waits for ever. It takes an order in which lanes do.
TEST(EmulatorAtRandom, FindsALaneThatIsLappedByPhases) {
  const auto run_phases = [&](bool keeps_lanes_together) {
    const uint32_t shared = shared_address(dynamic_shared_memory()), full = shared, empty = shared + 8;
    run("small_kernel", dim3(1), dim3(64), kSharedBytes, [&] {
      if (threadIdx.x == 0) {
        mbarrier_init(full, 1);
        mbarrier_init(empty, 1);
      }
      barrier_sync(0, 64);
      for (int phase = 0; phase < 8; ++phase) {
        if (threadIdx.x < 32) {
          mbarrier_wait(empty, phase % 2);
          char all[kWarpThreads];
          if (keeps_lanes_together) exchange(0xffffffffu, "", all, 1);
          if (threadIdx.x == 0) mbarrier_arrive(full);
        } else if (threadIdx.x == 32) {
          mbarrier_arrive(empty);
          mbarrier_wait(full, phase % 2);
        }
      }
    });
  };
  int found = 0;
  for (unsigned seed = 1; seed <= 100; ++seed) {
    set_timing(Timing::kRandom, seed);
    EXPECT_NO_THROW(run_phases(true)) << "seed " << seed;
    set_timing(Timing::kRandom, seed);
    try {
      run_phases(false);
    } catch (const EmulationError& error) {
      EXPECT_CONTAINS(std::string(error.what()), "at random, seed " + std::to_string(seed));
      ++found;
    }
  }
  EXPECT_GT(found, 0);
  for (const Timing timing : {Timing::kEarly, Timing::kLateCopies, Timing::kLateProducts}) {
    set_timing(timing);
    EXPECT_NO_THROW(run_phases(false));
  }
  set_timing(Timing::kEarly);
}

// Accesses that nothing orders are found whatever the order of their running was.
class EmulatorRaces : public SmallKernels {
 protected:
  // Each thread writes its place and reads that of one in another warp.
  std::string failure_with(const std::function<void()>& between) {
    return failure([&] {
      store_shared(shared_ + 4 * threadIdx.x, threadIdx.x);
      between();
      unsigned of_another = 0;
      load_shared(of_another, shared_ + 4 * ((threadIdx.x + 32) % kThreads));
    });
  }
};

TEST_F(EmulatorRaces, FindsAReadOfWhatAnotherThreadWrites) {
  EXPECT_CONTAINS(failure_with([] {}), "a race: nothing orders this");
  EXPECT_CONTAINS(failure_with([] { exchange(0xffffffffu, "", std::vector<char>(kWarpThreads).data(), 1); }), "a race");
  EXPECT_EQ(failure_with([] { barrier_sync(1, kThreads); }), "");
}

TEST_F(EmulatorRaces, FindsAWriteOfWhatAnotherThreadReads) {
  const auto what = [&](bool waits) {
    return failure([&] {
      unsigned value = 0;
      load_shared(value, shared_);
      if (threadIdx.x >= 32) return barrier_arrive(1, kThreads);
      if (waits) barrier_sync(1, kThreads);
      if (threadIdx.x == 0) store_shared(shared_, value);
      if (!waits) barrier_arrive(1, kThreads);
    });
  };
  EXPECT_EQ(what(true), "");
  EXPECT_CONTAINS(what(false), "a race: nothing orders this");
}

TEST_F(EmulatorRaces, FindsTwoWritesOfTheSame) {
  EXPECT_CONTAINS(failure([&] { store_shared(shared_, 0u); }),
                  "a race: nothing orders this write and a write of thread");
}

TEST_F(EmulatorRaces, WhoArrivesAloneKnowsNothingOfTheOthers) {
  const std::string what = failure([&] {
    if (threadIdx.x < 32) {
      store_shared(shared_ + 4 * threadIdx.x, threadIdx.x);
      barrier_arrive(1, kThreads);
    } else {
      barrier_sync(1, kThreads);
      store_shared(shared_ + 4 * threadIdx.x, threadIdx.x);
    }
    unsigned of_another = 0;
    load_shared(of_another, shared_ + 4 * ((threadIdx.x + 64) % kThreads));
  });
  EXPECT_CONTAINS(what, "a race");
}

TEST_F(EmulatorRaces, FindsAProductOfWhatAnotherThreadWrites) {
  const auto what = [&](bool waits) {
    std::vector<float> sums(kThreads * 32, 0.0f);
    return failure([&] {
      const uint32_t a = shared_ + 1024, b = a + 64 * 128;
      if (threadIdx.x < 64) {
        store_ones(a);
        store_ones(b);
      }
      fence_async();
      if (waits) barrier_sync(1, kThreads);
      fence_products();
      start_product({&sums[threadIdx.x * 32], nullptr, descriptor(a), descriptor(b), false, false, true, false, 64});
      commit_products();
      wait_products(0);
    });
  };
  EXPECT_EQ(what(true), "");
  EXPECT_CONTAINS(what(false), "a race");
}

TEST_F(EmulatorRaces, MBarriersOrder) {
  const auto what = [&](bool waits) {
    return failure([&] {
      const uint32_t barrier = shared_ + 1024;
      if (threadIdx.x == 0) mbarrier_init(barrier, 1);
      barrier_sync(0, kThreads);
      if (threadIdx.x == 0) {
        store_shared(shared_, 1u);
        mbarrier_arrive(barrier);
      } else {
        if (waits) mbarrier_wait(barrier, 0);
        unsigned value = 0;
        load_shared(value, shared_);
      }
    });
  };
  EXPECT_EQ(what(true), "");
  EXPECT_CONTAINS(what(false), "a race");
}

TEST(EmulatorAtRandom, DoesTheSameWithASeed) {
  const auto order = [](unsigned seed) {
    std::vector<unsigned> threads;
    set_timing(Timing::kRandom, seed);
    run("small_kernel", dim3(2), dim3(kThreads), 0, [&] {
      barrier_sync(0, kThreads);
      threads.push_back(threadIdx.x);
    });
    set_timing(Timing::kEarly);
    return threads;
  };
  EXPECT_EQ(order(5), order(5));
  EXPECT_NE(order(5), order(6));
}

std::string timing_name(const testing::TestParamInfo<Timing>& info) {
  constexpr const char* kNames[] = {"early", "late_copies", "late_products"};
  return kNames[static_cast<int>(info.param)];
}

INSTANTIATE_TEST_SUITE_P(Machine, Emulator, testing::Values(Timing::kEarly, Timing::kLateCopies, Timing::kLateProducts),
                         timing_name);

}  // namespace
}  // namespace fdma::emulation
