// The ops of the encoders on the CPU: norms, linears, attention, and all layers at once.
#include <algorithm>
#include <cstring>
#include <numeric>
#include <tuple>

#include "tensors.h"

namespace altclip_fast {
namespace {

Rows rows_of(const Tensor& x) { return {x.data_ptr(), x.stride(0), x.stride(1), x.stride(2)}; }

std::vector<int64_t> starts(const Tensor& cu_seqlens, int64_t rows) {
  std::vector<int64_t> found = integers(cu_seqlens);
  for (size_t i = 0; i < found.size(); i++)
    STD_TORCH_CHECK(found[i] >= (i ? found[i - 1] : 0) && found[i] <= rows, "cu_seqlens must rise from 0 to ", rows);
  STD_TORCH_CHECK(found.front() == 0 && found.back() == rows, "cu_seqlens must rise from 0 to ", rows);
  return found;
}

void attend(const Attention& work, int64_t sequences) {
  torch::stable::parallel_for(0, sequences * work.heads, 1, [&](int64_t begin, int64_t end) {
    kernels().attention(work, begin, end);
  });
}

Tensor attention_cpu(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, Tensor cu_seqlens_k, bool causal,
                     double scale) {
  const int64_t heads = q.size(1);
  Tensor out = torch::stable::new_empty(q, {q.size(0), heads, v.size(2)});
  const auto starts_q = starts(cu_seqlens_q, q.size(0)), starts_k = starts(cu_seqlens_k, k.size(0));
  attend({rows_of(q), rows_of(k), rows_of(v), out.mutable_data_ptr(), starts_q.data(), starts_k.data(), heads,
          q.size(2), v.size(2), static_cast<float>(scale), causal, dtype_of(q)},
         cu_seqlens_q.size(0) - 1);
  return out;
}

void normalize(const Norm& work, int64_t rows) {
  torch::stable::parallel_for(0, rows, 1 + 16384 / std::max<int64_t>(1, work.columns), [&](int64_t begin, int64_t end) {
    kernels().normalize(work, begin, end);
  });
}

// x [M, N], contiguous; so is the residual.
Tensor layer_norm_cpu(Tensor x, Tensor weight, Tensor bias, double eps) {
  Tensor out = torch::stable::new_empty(x, {x.size(0), x.size(1)});
  normalize({x.data_ptr(), nullptr, nullptr, weight.data_ptr(), bias.data_ptr(), out.mutable_data_ptr(), nullptr,
             nullptr, x.size(1), eps, dtype_of(x)},
            x.size(0));
  return out;
}

std::tuple<Tensor, Tensor> add_layer_norm_cpu(Tensor x, Tensor residual, Tensor weight, Tensor bias, double eps) {
  Tensor total = torch::stable::new_empty(x, {x.size(0), x.size(1)}), out = torch::stable::empty_like(total);
  normalize({x.data_ptr(), residual.data_ptr(), total.mutable_data_ptr(), weight.data_ptr(), bias.data_ptr(),
             out.mutable_data_ptr(), nullptr, nullptr, x.size(1), eps, dtype_of(x)},
            x.size(0));
  return {total, out};
}

// weight [N, K], contiguous, rows of whole lanes of 32 bits; any dtype. In whole panels of columns.
Tensor pack_weight_cpu(Tensor weight) {
  const int64_t columns = weight.size(0), depth = weight.size(1) * weight.element_size() / 4, panel = kernels().panel;
  const int64_t bytes = ceil_div(columns, panel) * panel * depth * 4;
  Tensor packed = torch::stable::new_empty(weight, {bytes / static_cast<int64_t>(weight.element_size())});
  kernels().pack_weight(weight.data_ptr(), columns, depth, packed.mutable_data_ptr());
  return packed;
}

// A packed weight; of 8-bit numbers, with sums and scale [columns]; and its bias [columns]. All contiguous.
struct Layer {
  const void* packed;
  int64_t columns;
  const void *sums, *scale, *bias;
};

Layer layer_of(const Tensor& packed, int64_t columns, const std::optional<Tensor>& sums,
               const std::optional<Tensor>& scale, const std::optional<Tensor>& bias) {
  return {packed.data_ptr(), columns, data_of(sums), data_of(scale), data_of(bias)};
}

// Rows that are multiplied: of the dtype, or 8-bit numbers with their ranges.
struct Operand {
  const void* x;
  int64_t row_stride, rows, depth;
  const float* ranges;

  Operand some(int64_t begin, int64_t count, Dtype dtype) const {
    return {(const char*)x + begin * row_stride * (ranges ? 1 : size_of(dtype)), row_stride, count, depth,
            ranges ? ranges + 2 * begin : nullptr};
  }
};

// Room for rows as 8-bit numbers.
struct Bytes {
  Tensor values, ranges;

  Bytes(const Tensor& like, int64_t rows, int64_t depth)
      : values(torch::stable::new_empty(like, {rows, depth}, ScalarType::Byte)),
        ranges(torch::stable::new_empty(like, {rows, 2}, ScalarType::Float)) {}

  uint8_t* numbers() const { return (uint8_t*)values.mutable_data_ptr(); }
  float* extents() const { return (float*)ranges.mutable_data_ptr(); }
  Operand holding(int64_t rows, int64_t depth) const { return {numbers(), depth, rows, depth, extents()}; }

  Operand of(const Operand& x, Dtype dtype) const {
    const Quantize work = {x.x, x.row_stride, x.depth, numbers(), extents(), dtype};
    torch::stable::parallel_for(0, x.rows, 16, [&](int64_t begin, int64_t end) { kernels().quantize(work, begin, end); });
    return holding(x.rows, x.depth);
  }
};

// activation(x w^T + bias) + residual, of one x and some layers, all of 8 bits where x is, or none.
void run_linears(const Operand& x, Dtype dtype, const std::vector<Layer>& layers, Activation activation,
                 const void* residual, const std::vector<void*>& outs) {
  std::vector<Linear> works;
  int64_t items = 0;
  for (size_t i = 0; i < layers.size(); i++) {
    const Layer& w = layers[i];
    works.push_back({x.x, x.row_stride, x.ranges, (const float*)w.sums, (const float*)w.scale, w.packed, w.bias,
                     residual, outs[i], x.rows, x.depth, w.columns, activation, dtype});
    items += kernels().linear_items(works[i]);
  }
  torch::stable::parallel_for(0, items, 1, [&](int64_t begin, int64_t end) {
    for (const Linear& work : works) {
      const int64_t count = kernels().linear_items(work);
      kernels().linear(work, std::max<int64_t>(begin, 0), std::min(end, count));
      begin -= count, end -= count;
    }
  });
}

constexpr int64_t MLP_ROWS = 512;  // at once: what lies between the two products stays in the L3
int64_t mlp_chunks(int64_t rows) { return std::max<int64_t>(1, ceil_div(rows, MLP_ROWS)); }
int64_t mlp_rows(int64_t rows) { return ceil_div(rows, mlp_chunks(rows)); }

// The same twice, one after the other, the activation after the first. `hidden` has room for mlp_rows, and so have
// `bytes`, where x is of 8 bits.
void run_mlp(const Operand& x, Dtype dtype, const Layer& first, const Layer& second,
             Activation activation, const void* residual, void* out, void* hidden, const Bytes* bytes) {
  const int64_t chunks = mlp_chunks(x.rows);
  for (int64_t i = 0; i < chunks; i++) {
    const int64_t begin = x.rows * i / chunks, count = x.rows * (i + 1) / chunks - begin;
    auto at = [&](const void* data) { return data ? (char*)data + begin * second.columns * size_of(dtype) : nullptr; };
    run_linears(x.some(begin, count, dtype), dtype, {first}, activation, nullptr, {hidden});
    const Operand between = {hidden, first.columns, count, first.columns, nullptr};
    run_linears(bytes ? bytes->of(between, dtype) : between, dtype, {second}, Activation::None, at(residual), {at(out)});
  }
}

// x [M, K] with any stride of whole lanes between rows, as some layers take it.
struct Input {
  Operand rows;
  std::optional<Bytes> bytes;

  Input(const Tensor& x, bool quantized) : rows{x.data_ptr(), x.stride(0), x.size(0), x.size(1), nullptr} {
    if (!quantized) return;
    bytes.emplace(x, rows.rows, rows.depth);
    rows = bytes->of(rows, dtype_of(x));
  }
};

// residual [M, N], contiguous.
Tensor linear_cpu(Tensor x, Tensor packed, int64_t columns, std::optional<Tensor> sums, std::optional<Tensor> scale,
                  std::optional<Tensor> bias, int64_t activation, std::optional<Tensor> residual) {
  Tensor out = torch::stable::new_empty(x, {x.size(0), columns});
  run_linears(Input(x, scale.has_value()).rows, dtype_of(x), {layer_of(packed, columns, sums, scale, bias)},
              static_cast<Activation>(activation), data_of(residual), {out.mutable_data_ptr()});
  return out;
}

// Three of one x.
std::tuple<Tensor, Tensor, Tensor> qkv_cpu(
    Tensor x, Tensor packed_q, int64_t columns_q, std::optional<Tensor> sums_q, std::optional<Tensor> scale_q,
    std::optional<Tensor> bias_q, Tensor packed_k, int64_t columns_k, std::optional<Tensor> sums_k,
    std::optional<Tensor> scale_k, std::optional<Tensor> bias_k, Tensor packed_v, int64_t columns_v,
    std::optional<Tensor> sums_v, std::optional<Tensor> scale_v, std::optional<Tensor> bias_v) {
  auto empty = [&](int64_t columns) { return torch::stable::new_empty(x, {x.size(0), columns}); };
  Tensor q = empty(columns_q), k = empty(columns_k), v = empty(columns_v);
  run_linears(Input(x, scale_q.has_value()).rows, dtype_of(x),
              {layer_of(packed_q, columns_q, sums_q, scale_q, bias_q),
               layer_of(packed_k, columns_k, sums_k, scale_k, bias_k),
               layer_of(packed_v, columns_v, sums_v, scale_v, bias_v)},
              Activation::None, nullptr, {q.mutable_data_ptr(), k.mutable_data_ptr(), v.mutable_data_ptr()});
  return {q, k, v};
}

Tensor mlp_cpu(Tensor x, Tensor packed1, int64_t columns1, std::optional<Tensor> sums1, std::optional<Tensor> scale1,
               std::optional<Tensor> bias1, int64_t activation, Tensor packed2, int64_t columns2,
               std::optional<Tensor> sums2, std::optional<Tensor> scale2, std::optional<Tensor> bias2,
               std::optional<Tensor> residual) {
  const int64_t rows = x.size(0);
  const Input input(x, scale1.has_value());
  Tensor out = torch::stable::new_empty(x, {rows, columns2});
  Tensor hidden = torch::stable::new_empty(x, {mlp_rows(rows), columns1});
  std::optional<Bytes> bytes;
  if (scale2) bytes.emplace(x, mlp_rows(rows), columns1);
  run_mlp(input.rows, dtype_of(x), layer_of(packed1, columns1, sums1, scale1, bias1),
          layer_of(packed2, columns2, sums2, scale2, bias2), static_cast<Activation>(activation), data_of(residual),
          out.mutable_data_ptr(), hidden.mutable_data_ptr(), bytes ? &*bytes : nullptr);
  return out;
}

constexpr int64_t STACK_ROWS = 2560;  // at once, in whole sequences: what lies between their layers stays small

// One layer of an encoder; see altclip_fast/models/fused.py for the order of its parts.
struct Block {
  const void *weight1, *bias1, *weight2, *bias2;  // of the norms
  double eps1, eps2;
  Layer query, key, value, output, first, second;
};

std::vector<Block> blocks_of(const std::vector<Tensor>& parts, const std::vector<double>& eps, int64_t hidden,
                             int64_t intermediate) {
  constexpr size_t NORMS = 4, LAYER = 4, PARTS = NORMS + 6 * LAYER;
  std::vector<Block> blocks;
  for (size_t i = 0; i + PARTS <= parts.size(); i += PARTS) {
    auto data = [&](size_t part) { return parts[i + part].numel() ? parts[i + part].data_ptr() : nullptr; };
    auto layer = [&](size_t n, int64_t columns) {
      const size_t at = NORMS + n * LAYER;
      return Layer{data(at), columns, data(at + 1), data(at + 2), data(at + 3)};
    };
    blocks.push_back({data(0), data(1), data(2), data(3), eps[i / PARTS * 2], eps[i / PARTS * 2 + 1], layer(0, hidden),
                      layer(1, hidden), layer(2, hidden), layer(3, hidden), layer(4, intermediate), layer(5, hidden)});
  }
  return blocks;
}

// One row of each sequence, and room for what is taken of these.
struct Chosen {
  std::vector<int64_t> rows, starts;
  Tensor plain;
  Bytes bytes;

  Chosen(const Tensor& like, std::vector<int64_t> of, int64_t hidden)
      : rows(std::move(of)), starts(rows.size() + 1),
        plain(torch::stable::new_empty(like, {static_cast<int64_t>(rows.size()), hidden})),
        bytes(like, rows.size(), hidden) {
    std::iota(starts.begin(), starts.end(), 0);
  }

  const void* copy(const void* from, int64_t row_bytes, void* to) const {
    for (size_t i = 0; i < rows.size(); i++)
      std::memcpy((char*)to + i * row_bytes, (const char*)from + rows[i] * row_bytes, row_bytes);
    return to;
  }

  // Of contiguous rows.
  Operand of(const Operand& x, Dtype dtype) const {
    if (!x.ranges)
      return {copy(x.x, x.depth * size_of(dtype), plain.mutable_data_ptr()), x.depth, count(), x.depth, nullptr};
    copy(x.x, x.depth, bytes.numbers());
    copy(x.ranges, 2 * sizeof(float), bytes.extents());
    return bytes.holding(count(), x.depth);
  }

  int64_t count() const { return rows.size(); }
};

// What the layers of an encoder have in common, and room for some rows between them.
struct Stack {
  int64_t hidden, intermediate, heads;
  float scale;
  bool causal, pre_norm, quantized;
  Activation activation;
  Dtype dtype;
  Tensor normed = {}, q = {}, k = {}, v = {}, context = {}, sum = {}, inner = {};
  std::optional<Bytes> bytes = {}, inner_bytes = {};

  void make_room(const Tensor& like, int64_t rows) {
    for (Tensor* x : {&normed, &q, &k, &v, &context, &sum}) *x = torch::stable::new_empty(like, {rows, hidden});
    inner = torch::stable::new_empty(like, {mlp_rows(rows), intermediate});
    if (!quantized) return;
    bytes.emplace(like, rows, hidden);
    inner_bytes.emplace(like, mlp_rows(rows), intermediate);
  }

  Operand operand(const void* x, int64_t rows) const {
    const Operand plain = {x, hidden, rows, hidden, nullptr};
    return quantized ? bytes->of(plain, dtype) : plain;
  }

  // The norm of x as the linears take it.
  Operand norm(const void* x, int64_t rows, const void* weight, const void* bias, double eps) const {
    Norm work = {x, nullptr, nullptr, weight, bias, normed.mutable_data_ptr(), nullptr, nullptr, hidden, eps, dtype};
    if (quantized) work.values = bytes->numbers(), work.ranges = bytes->extents();
    normalize(work, rows);
    return quantized ? bytes->holding(rows, hidden) : Operand{normed.data_ptr(), hidden, rows, hidden, nullptr};
  }

  // The output of the attention of all rows, or of those chosen, plus a residual, in `sum`.
  void attention(const Block& b, const Operand& x, const std::vector<int64_t>& starts, const Chosen* only,
                 const void* added) const {
    void *to_q = q.mutable_data_ptr(), *to_k = k.mutable_data_ptr(), *to_v = v.mutable_data_ptr();
    if (only) {
      run_linears(x, dtype, {b.key, b.value}, Activation::None, nullptr, {to_k, to_v});
      run_linears(only->of(x, dtype), dtype, {b.query}, Activation::None, nullptr, {to_q});
    } else {
      run_linears(x, dtype, {b.query, b.key, b.value}, Activation::None, nullptr, {to_q, to_k, to_v});
    }
    const int64_t dim = hidden / heads, sequences = starts.size() - 1;
    auto rows = [&](const void* data) { return Rows{data, hidden, dim, 1}; };
    const std::vector<int64_t>& starts_q = only ? only->starts : starts;
    attend({rows(to_q), rows(to_k), rows(to_v), context.mutable_data_ptr(), starts_q.data(), starts.data(), heads, dim,
            dim, scale, causal && !only, dtype},
           sequences);
    run_linears(operand(context.data_ptr(), starts_q.back()), dtype, {b.output}, Activation::None, added,
                {sum.mutable_data_ptr()});
  }

  void mlp(const Block& b, const Operand& x, const void* added, void* out) const {
    run_mlp(x, dtype, b.first, b.second, activation, added, out, inner.mutable_data_ptr(),
            quantized ? &*inner_bytes : nullptr);
  }

  // One layer over rows of whole sequences; `out` may be x, unless rows are chosen.
  void run(const Block& b, const void* x, const std::vector<int64_t>& starts, const Chosen* only, void* out) const {
    const int64_t rows = starts.back(), wanted = only ? only->count() : rows;
    // What the chosen rows add to is kept where they come out: each row is read before it is written.
    const void* residual = only ? only->copy(x, hidden * size_of(dtype), out) : x;
    if (pre_norm) {
      attention(b, norm(x, rows, b.weight1, b.bias1, b.eps1), starts, only, residual);
      mlp(b, norm(sum.data_ptr(), wanted, b.weight2, b.bias2, b.eps2), sum.data_ptr(), out);
      return;
    }
    auto add_norm = [&](const void* added, const void* weight, const void* bias, double eps, void* to) {
      normalize({sum.data_ptr(), added, nullptr, weight, bias, to, nullptr, nullptr, hidden, eps, dtype}, wanted);
    };
    attention(b, operand(x, rows), starts, only, nullptr);
    add_norm(residual, b.weight1, b.bias1, b.eps1, normed.mutable_data_ptr());
    mlp(b, operand(normed.data_ptr(), wanted), nullptr, sum.mutable_data_ptr());
    add_norm(normed.data_ptr(), b.weight2, b.bias2, b.eps2, out);
  }
};

// Sequences [first, last) that are computed together.
struct Group { int64_t first, last; };

std::vector<Group> groups_of(const std::vector<int64_t>& offsets, int64_t limit) {
  std::vector<Group> groups;
  for (int64_t i = 0; i + 1 < static_cast<int64_t>(offsets.size()); i++) {
    if (groups.empty() || offsets[i + 1] - offsets[groups.back().first] > limit) groups.push_back({i, i});
    groups.back().last = i + 1;
  }
  return groups;
}

// All layers of an encoder over x [T, hidden], contiguous, some whole sequences at a time. With `select` [sequences],
// a row of each, the last layer computes these alone.
Tensor layers_cpu(Tensor x, Tensor cu_seqlens, std::optional<Tensor> select, std::vector<Tensor> parts,
                  std::vector<double> eps, bool causal, int64_t intermediate, int64_t heads, double scale,
                  bool pre_norm, bool quantized, int64_t activation) {
  const int64_t total = x.size(0), hidden = x.size(1), row = hidden * size_of(dtype_of(x));
  const std::vector<Block> blocks = blocks_of(parts, eps, hidden, intermediate);
  const std::vector<int64_t> offsets = starts(cu_seqlens, total);
  const std::vector<int64_t> chosen = select ? integers(*select) : std::vector<int64_t>();
  STD_TORCH_CHECK(!select || chosen.size() + 1 == offsets.size(), "one row of each sequence is selected");
  bool apart = true;  // no sequence asks for a row of another one
  for (size_t i = 0; i < chosen.size(); i++) {
    STD_TORCH_CHECK(chosen[i] >= 0 && chosen[i] < total, "there is no row ", chosen[i]);
    apart = apart && chosen[i] >= offsets[i] && chosen[i] < offsets[i + 1];
  }
  const std::vector<Group> groups = groups_of(offsets, apart ? STACK_ROWS : total);
  int64_t most = 0;  // rows at once; of empty sequences there are fewer than are selected
  for (const Group& group : groups)
    most = std::max({most, offsets[group.last] - offsets[group.first], group.last - group.first});
  Stack stack = {hidden, intermediate, heads, static_cast<float>(scale), causal, pre_norm, quantized,
                 static_cast<Activation>(activation), dtype_of(x)};
  stack.make_room(x, most);
  Tensor out = torch::stable::new_empty(x, {select ? select->size(0) : total, hidden});
  Tensor between = select ? torch::stable::new_empty(x, {most, hidden}) : out;
  for (const Group& group : groups) {
    const int64_t first = offsets[group.first];
    std::vector<int64_t> inside, wanted;
    for (int64_t i = group.first; i <= group.last; i++) inside.push_back(offsets[i] - first);
    for (int64_t i = group.first; select && i < group.last; i++) wanted.push_back(chosen[i] - first);
    const void* from = (const char*)x.data_ptr() + first * row;
    void* place = (char*)between.mutable_data_ptr() + (select ? 0 : first * row);
    for (size_t i = 0; i < blocks.size(); i++, from = place) {
      if (!select || i + 1 < blocks.size()) {
        stack.run(blocks[i], from, inside, nullptr, place);
        continue;
      }
      const Chosen only(x, wanted, hidden);
      stack.run(blocks[i], from, inside, &only, (char*)out.mutable_data_ptr() + group.first * row);
    }
  }
  return out;
}

}  // namespace
}  // namespace altclip_fast

STABLE_TORCH_LIBRARY_IMPL(altclip_fast_native, CPU, m) {
  m.impl("attention_cpu", TORCH_BOX(&altclip_fast::attention_cpu));
  m.impl("pack_weight_cpu", TORCH_BOX(&altclip_fast::pack_weight_cpu));
  m.impl("linear_cpu", TORCH_BOX(&altclip_fast::linear_cpu));
  m.impl("mlp_cpu", TORCH_BOX(&altclip_fast::mlp_cpu));
  m.impl("qkv_cpu", TORCH_BOX(&altclip_fast::qkv_cpu));
  m.impl("layer_norm_cpu", TORCH_BOX(&altclip_fast::layer_norm_cpu));
  m.impl("add_layer_norm_cpu", TORCH_BOX(&altclip_fast::add_layer_norm_cpu));
  m.impl("layers_cpu", TORCH_BOX(&altclip_fast::layers_cpu));
}
