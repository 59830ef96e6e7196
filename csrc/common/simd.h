// Run-time choice among the copies of a kernel that were compiled per instruction set.
#pragma once

namespace dhpe {

enum class Isa { baseline, avx2, avx512 };

// The best set this processor has; the environment variable DHPE_ISA=baseline|avx2|avx512 lowers it, for tests.
Isa current_isa();
const char* isa_name(Isa isa);

}  // namespace dhpe

// Declares `name` once per instruction set; each copy is defined by compiling one source with DHPE_ISA set.
#define DHPE_DECLARE_SIMD(signature_of) \
  namespace baseline {                  \
  signature_of;                         \
  }                                     \
  namespace avx2 {                      \
  signature_of;                         \
  }                                     \
  namespace avx512 {                    \
  signature_of;                         \
  }

#if defined(DHPE_X86_SIMD)
#define DHPE_CALL_SIMD(name, ...)                                     \
  do {                                                                \
    switch (dhpe::current_isa()) {                                    \
      case dhpe::Isa::avx512: dhpe::avx512::name(__VA_ARGS__); break; \
      case dhpe::Isa::avx2: dhpe::avx2::name(__VA_ARGS__); break;     \
      default: dhpe::baseline::name(__VA_ARGS__);                     \
    }                                                                 \
  } while (0)
#else
#define DHPE_CALL_SIMD(name, ...) dhpe::baseline::name(__VA_ARGS__)
#endif
