#define SELFMENT_SIMD kSimdAvx512Vnni
#define SELFMENT_SIMD_NAME "avx512vnni"
#include "simd_kernels.inl"
