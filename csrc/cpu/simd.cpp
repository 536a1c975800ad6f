#include "simd.h"

#include <cstdlib>
#include <cstring>

namespace selfment::cpu {

namespace {

const Simd& choose() {
#if defined(SELFMENT_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  const char* wish = std::getenv("SELFMENT_ISA");
  const auto allows = [wish](const char* name) {
    return wish == nullptr || *wish == 0 || std::strcmp(wish, name) == 0;
  };
  if (avx512 && allows("avx512")) return kSimdAvx512;
  if (avx2 && (allows("avx2") || allows("avx512"))) return kSimdAvx2;
#endif
  return kSimdPortable;
}

}  // namespace

const Simd& simd() {
  static const Simd& chosen = choose();
  return chosen;
}

const char* isa() { return simd().name; }

}  // namespace selfment::cpu
