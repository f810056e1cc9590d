/* The image network of `lite` for x86 processors that have AVX-VNNI, such as most new laptops. */

#define AVX_VNNI
#include "_network_avx2.c"
