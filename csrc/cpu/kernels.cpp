// Compiled once for each instruction set, with -DISA=avx512_bf16, avx512, avx2 or portable and that set's flags.
#include "attention.h"
#include "contrastive.h"
#include "linear.h"
#include "norm.h"
#include "quantize.h"

#define TEXT_(x) #x
#define TEXT(x) TEXT_(x)

namespace altclip_fast {
namespace ISA {

extern const Kernels kernels;
const Kernels kernels = {
    TEXT(ISA), attention, quantize,     normalize, pack_weight, linear,       linear_items,  ROWS,         PANEL,
    row_words, pack_rows, write_scores, keep_best, add_sums,    pack_columns, add_gradients, softmax_rows, l2_normalize};

}  // namespace ISA
}  // namespace altclip_fast
