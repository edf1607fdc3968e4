// For the test emulation.unknown_instruction: translate.py refuses this by name.
__device__ void unknown(int& x, int y) { asm volatile("wgmma.nonsense.sync %0, %1;" : "=r"(x) : "r"(y) : "memory"); }
