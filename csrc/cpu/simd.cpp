#include "simd.h"

#include <cstdlib>
#include <cstring>

#if defined(SELFMENT_X86)
#include <cpuid.h>
#endif

namespace selfment::cpu {

namespace {

#if defined(SELFMENT_X86)
// True if the processor converts half precision; clang 14 does not know this feature by name.
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
  const bool avx512vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  const char* wish = std::getenv("SELFMENT_ISA");
  // A wish allows the set that it names and those after it in this order.
  bool allowed = wish == nullptr || *wish == 0;
  const auto allows = [&](const char* name) {
    return allowed = allowed || std::strcmp(wish, name) == 0;
  };
  if (allows("avx512vnni") && avx512vnni) return kSimdAvx512Vnni;
  if (allows("avx512") && avx512) return kSimdAvx512;
  if (allows("avx2") && avx2) return kSimdAvx2;
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
