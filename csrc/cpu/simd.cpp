#include "simd.h"

#include <cstdlib>
#include <cstring>

#if defined(SELFMENT_X86)
#include <cpuid.h>
#endif

namespace selfment::cpu {

namespace {

#if defined(SELFMENT_X86)
// Half precision conversions, which clang 14 does not know by name.
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

const Simd& choose() {
#if defined(SELFMENT_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
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
