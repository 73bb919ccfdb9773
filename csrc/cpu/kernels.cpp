// Compiled once for each instruction set, with -DISA=avx512_bf16, avx512, avx2 or portable and that set's flags.
#include "attention.h"
#include "linear.h"

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)

namespace altclip_fast {
namespace ISA {

extern const Kernels kernels;
const Kernels kernels = {TEXT(ISA), attention, quantize, pack_int8, int8_linear, int8_linear_items};

}  // namespace ISA
}  // namespace altclip_fast
