// The kernels' bodies on the emulated device, against plain loops. Inputs are small whole numbers, so scores are exact,
// and there are many ties.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "mma.h"
#include "rows.h"
#include "wgmma.h"

using namespace altclip_fast::cuda;

namespace {

int failures = 0;
std::string title;

void expect(bool fine, const std::string& what) {
  if (fine) return;
  if (failures++ < 20) fprintf(stderr, "%s: %s\n", title.c_str(), what.c_str());
}

bool close(float x, float y) {
  return x == y || (x != x && y != y) || std::fabs(x - y) <= 1e-5f * std::max(1.0f, std::fabs(y));
}

struct Case {
  int n, m, width, span, blocks, k;
  bool normalize, late;
};

// Memory that ends where it ends: what is written beyond is seen.
template <class T>
struct Output {
  std::vector<char> memory;
  size_t count;
  explicit Output(size_t count) : memory((count + 16) * sizeof(T), (char)0x7f), count(count) {}
  T* data() { return (T*)memory.data(); }
  T operator[](size_t i) { return data()[i]; }
  void check(const char* name) {
    for (size_t i = count * sizeof(T); i < memory.size(); i++)
      expect(memory[i] == 0x7f, std::string(name) + " is written beyond its end");
  }
};

template <class T>
struct Problem {
  Case c;
  int stride;
  std::vector<T> a, b;
  std::vector<float> a_inverse, b_inverse, score;
  Scores s;
  float factor = 0.5f;

  Problem(const Case& c, bool find_norms) : c(c), stride((c.width + 7) / 8 * 8) {
    std::mt19937 random(c.n * 1000 + c.m + c.width);
    auto make = [&](int rows, std::vector<T>& x) {
      x.assign((size_t)rows * stride + 8, from_float<T>(NAN));  // NaN where nothing may be read
      while ((uintptr_t)x.data() % 16) std::abort();
      for (int i = 0; i < rows; i++)
        for (int j = 0; j < c.width; j++) x[(size_t)i * stride + j] = from_float<T>((float)((int)(random() % 5) - 2));
      std::vector<float> inverse(rows);
      for (int i = 0; i < rows; i++) {
        float squares = 0;
        for (int j = 0; j < c.width; j++) squares += std::pow(to_float(x[(size_t)i * stride + j]), 2.0f);
        inverse[i] = inverse_norm(squares);
      }
      return inverse;
    };
    a_inverse = make(c.n, a);
    b_inverse = make(c.m, b);
    s = {{a.data(), c.n, c.width, stride, c.normalize ? a_inverse.data() : nullptr},
         {b.data(), c.m, c.width, stride, c.normalize && !find_norms ? b_inverse.data() : nullptr},
         2.0f,
         &factor,
         Dtype::Float32,
         false,
         c.normalize && find_norms};
    score.resize((size_t)c.n * c.m);
    for (int i = 0; i < c.n; i++)
      for (int j = 0; j < c.m; j++) {
        float sum = 0;
        for (int k = 0; k < c.width; k++)
          sum += to_float(a[(size_t)i * stride + k]) * to_float(b[(size_t)j * stride + k]);
        score[(size_t)i * c.m + j] = c.normalize ? sum * a_inverse[i] * b_inverse[j] : sum;
      }
  }
};

template <class T>
struct Mma {
  using Tile = MmaTile<T>;
  using Element = T;
  static constexpr bool FEW = false;
  static constexpr int ROWS = Tile::ROWS, GROUP_ROWS = Tile::ROWS, COLUMNS = Tile::COLUMNS, STEP = Tile::STEP;

  template <template <class, int, int> class Epilogue, class Params>
  static void run(const Problem<T>& p, const Work& work, const Params& params) {
    constexpr int SHARED = Tile::STAGES * Tile::STAGE_BYTES + Epilogue<T, Tile::MI, Tile::NJ>::SCRATCH;
    emulated::launch(p.c.blocks, Tile::THREADS, SHARED, p.c.late, [&] { mma_body<T, Epilogue>(p.s, work, params); });
  }
};

template <class T, bool IS_FEW>
struct Wgmma {
  using Tile = WgmmaTile<IS_FEW>;
  using Element = T;
  static constexpr bool FEW = IS_FEW;
  static constexpr int ROWS = Tile::ROWS, GROUP_ROWS = 64, COLUMNS = Tile::COLUMNS, STEP = Tile::STEP;

  template <template <class, int, int> class Epilogue, class Params>
  static void run(const Problem<T>& p, const Work& work, const Params& params) {
    constexpr int SHARED = Tile::SCRATCH + Tile::GROUPS * Epilogue<T, Tile::MI, Tile::NJ>::SCRATCH;
    const TensorMap a = {(const uint16_t*)p.a.data(), p.c.width, p.c.n, p.stride, ROWS};
    const TensorMap b = {(const uint16_t*)p.b.data(), p.c.width, p.c.m, p.stride, COLUMNS};
    emulated::launch(p.c.blocks, Tile::THREADS, SHARED, p.c.late,
                     [&] { wgmma_body<T, IS_FEW, Epilogue>(&a, &b, p.s, work, params); });
  }
};

std::string at(int i, int j) { return "[" + std::to_string(i) + ", " + std::to_string(j) + "]"; }

// most and sum of 2^x.
LogSum plain_log_sum(const std::vector<float>& x) {
  LogSum sum = no_log_sum();
  for (float v : x) sum.most = std::max(sum.most, v);
  for (float v : x) sum.sum += std::exp2(v - sum.most);
  return sum;
}

std::vector<LogSum> combine(const std::vector<LogSum>& partial, int parts, int n) {
  Output<float> out(2 * n);
  emulated::launch((n + 31) / 32, COMBINE_THREADS, COMBINE_THREADS * sizeof(LogSum), false,
                   [&] { combine_body(partial.data(), parts, n, out.data(), 1, n); });
  out.check("combined");
  std::vector<LogSum> sums(n);
  for (int i = 0; i < n; i++) sums[i] = {out[i], out[n + i]};
  return sums;
}

void expect_sums(const std::vector<LogSum>& found, const std::vector<LogSum>& expected, const char* name) {
  for (size_t i = 0; i < found.size(); i++)
    expect(close(found[i].most, expected[i].most) && close(found[i].sum, expected[i].sum),
           std::string(name) + " " + std::to_string(i) + ": " + std::to_string(found[i].most) + ", " +
               std::to_string(found[i].sum) + " is not " + std::to_string(expected[i].most) + ", " +
               std::to_string(expected[i].sum));
}

template <class Engine>
void check(const Case& c) {
  using T = typename Engine::Element;
  Problem<T> p(c, Engine::FEW);
  const Work work = {(c.n + Engine::ROWS - 1) / Engine::ROWS, (c.m + Engine::COLUMNS - 1) / Engine::COLUMNS, c.span,
                     (c.width + Engine::STEP - 1) / Engine::STEP};
  const int parts = work.parts(), groups = work.row_blocks * (Engine::ROWS / Engine::GROUP_ROWS);
  title = std::string(__PRETTY_FUNCTION__).substr(0, 120) + " " + std::to_string(c.n) + "x" + std::to_string(c.m) +
          "x" + std::to_string(c.width) + " top " + std::to_string(c.k) + (c.late ? " late" : "");
  auto row_of = [&](int i) {
    return std::vector<float>(p.score.begin() + (size_t)i * c.m, p.score.begin() + (size_t)(i + 1) * c.m);
  };

  Output<T> out((size_t)c.n * c.m);
  Engine::template run<Store>(p, work, StoreParams{nullptr, out.data()});
  out.check("scores");
  for (int i = 0; i < c.n; i++)
    for (int j = 0; j < c.m; j++) {
      const float expected = to_float(from_float<T>(p.score[(size_t)i * c.m + j])),
                  found = to_float(out[(size_t)i * c.m + j]);
      expect(c.normalize ? std::fabs(found - expected) < 0.01f : found == expected,
             "score " + at(i, j) + " is " + std::to_string(found) + ", not " + std::to_string(expected));
    }

  std::vector<LogSum> row_parts((size_t)parts * c.n), rows(c.n);
  Engine::template run<RowSums>(p, work, RowSumsParams{row_parts.data()});
  for (int i = 0; i < c.n; i++) rows[i] = plain_log_sum(row_of(i));
  expect_sums(combine(row_parts, parts, c.n), rows, "row");

  std::vector<float> statistics(2 * c.n);
  for (int i = 0; i < c.n; i++) {
    statistics[i] = rows[i].most;
    statistics[c.n + i] = rows[i].sum;
  }
  Output<T> softmax((size_t)c.n * c.m);
  Engine::template run<Store>(p, work, StoreParams{statistics.data(), softmax.data()});
  softmax.check("softmax");
  for (int i = 0; i < c.n; i++)
    for (int j = 0; j < c.m; j++) {
      const float expected = std::exp2(p.score[(size_t)i * c.m + j] - rows[i].most) / rows[i].sum;
      expect(std::fabs(to_float(softmax[(size_t)i * c.m + j]) - expected) < 0.005f, "softmax " + at(i, j));
    }

  if constexpr (!Engine::FEW) {
    std::vector<LogSum> column_parts((size_t)groups * c.m), columns(c.m);
    std::vector<float> diagonal(c.n, -77.0f);
    const int first = 3;
    Engine::template run<PairSums>(p, work,
                                   PairSumsParams{{row_parts.data()}, column_parts.data(), diagonal.data(), first});
    expect_sums(combine(row_parts, parts, c.n), rows, "row of pairs");
    for (int j = 0; j < c.m; j++) {
      std::vector<float> column(c.n);
      for (int i = 0; i < c.n; i++) column[i] = p.score[(size_t)i * c.m + j];
      columns[j] = plain_log_sum(column);
    }
    expect_sums(combine(column_parts, groups, c.m), columns, "column");
    for (int i = 0; i < c.n; i++)
      expect(close(diagonal[i], first + i < c.m ? p.score[(size_t)i * c.m + first + i] : -77.0f),
             "diagonal " + std::to_string(i));

    std::vector<float> by_column(2 * c.m);
    for (int j = 0; j < c.m; j++) {
      by_column[j] = columns[j].most;
      by_column[c.m + j] = columns[j].sum;
    }
    Output<T> gradient((size_t)c.n * c.m);
    Output<float> along((size_t)groups * parts);
    Engine::template run<Gradient>(
        p, work, GradientParams{statistics.data(), c.n, by_column.data(), gradient.data(), along.data(), first, parts});
    gradient.check("gradient");
    along.check("along");
    double expected_along = 0, found_along = 0, size = 1;
    for (int i = 0; i < c.n; i++)
      for (int j = 0; j < c.m; j++) {
        const float score = p.score[(size_t)i * c.m + j];
        const float expected = std::exp2(score - rows[i].most) / rows[i].sum +
                               std::exp2(score - columns[j].most) / columns[j].sum - (j == first + i ? 2.0f : 0.0f);
        expected_along += (double)expected * score;
        size += std::fabs((double)expected * score);
        expect(std::fabs(to_float(gradient[(size_t)i * c.m + j]) - expected) < 0.01f, "gradient " + at(i, j));
      }
    for (size_t i = 0; i < along.count; i++) found_along += along[i];
    expect(std::fabs(found_along - expected_along) < 1e-4 * size, "along " + std::to_string(found_along));
  }

  // Exact scores only: the order of others depends on their last bit.
  if (!c.normalize) {
    for (int k : {1, c.k}) {
      const int slots = k == 1 ? 1 : (int)slots_for(k, ARRIVING);
      Output<Candidate> found((size_t)c.n * parts * slots);
      const TopKParams params = {found.data(), parts, k, slots};
      if (k == 1)
        Engine::template run<Best>(p, work, params);
      else
        Engine::template run<TopK>(p, work, params);
      found.check("candidates");
      Output<T> values((size_t)c.n * k);
      Output<int64_t> indices((size_t)c.n * k);
      emulated::launch((c.n + MERGE_WARPS - 1) / MERGE_WARPS, MERGE_WARPS * 32,
                       MERGE_WARPS * MERGE_SLOTS * (int)sizeof(Candidate), false,
                       [&] { merge_body<T>(found.data(), c.n, parts, k, slots, values.data(), indices.data()); });
      values.check("values");
      indices.check("indices");
      for (int i = 0; i < c.n; i++) {
        const std::vector<float> row = row_of(i);
        std::vector<int> order(c.m);
        for (int j = 0; j < c.m; j++) order[j] = j;
        std::stable_sort(order.begin(), order.end(), [&](int x, int y) { return row[x] > row[y]; });
        for (int j = 0; j < k; j++)
          expect(indices[(size_t)i * k + j] == order[j] && to_float(values[(size_t)i * k + j]) == row[order[j]],
                 "top " + std::to_string(k) + " " + at(i, j) + " is " + std::to_string(indices[(size_t)i * k + j]) +
                     ", not " + std::to_string(order[j]));
      }
    }
  }
}

// Three products of TF32 numbers are as good as float32, one is not.
void check_float32_products() {
  title = "float32 products";
  for (bool tf32 : {false, true}) {
    Problem<float> p({40, 130, 500, 1, 1, 1, false, false}, false);
    std::mt19937 random(0);
    std::normal_distribution<float> normal;
    for (auto* x : {&p.a, &p.b})
      for (float& v : *x) v = normal(random);
    p.s.tf32 = tf32;
    Output<float> out(40 * 130);
    Mma<float>::run<Store>(p, {1, 2, 1, (500 + Mma<float>::STEP - 1) / Mma<float>::STEP},
                           StoreParams{nullptr, out.data()});
    double largest = 0;
    for (int i = 0; i < 40; i++)
      for (int j = 0; j < 130; j++) {
        double exact = 0;
        for (int k = 0; k < 500; k++) exact += (double)p.a[i * p.stride + k] * p.b[j * p.stride + k];
        largest = std::max(largest, std::fabs(out[i * 130 + j] - exact));
      }
    expect(tf32 ? largest > 1e-3 && largest < 0.1 : largest < 3e-5, "off by " + std::to_string(largest));
  }
}

void check_order() {
  title = "order";
  const float rising[] = {-INFINITY, -3e38f, -1.0f, -1e-40f, 0.0f, 1e-40f, 1.0f, 3e38f, INFINITY, NAN};
  for (int i = 0; i < 10; i++) {
    const Candidate x = candidate(rising[i], 7);
    expect(x > NO_CANDIDATE && index_of(x) == 7 && close(score_of(x), rising[i]),
           "candidate of " + std::to_string(rising[i]));
    expect(candidate(rising[i], 6) > x, "of equal scores the lower index is better");
    if (i) expect(x > candidate(rising[i - 1], 0), "the greater score is better");
  }
  expect(candidate(-0.0f, 1) == candidate(0.0f, 1), "zeros are equal");
  expect(candidate(-NAN, 1) == candidate(NAN, 1), "so are NaNs");
}

void check_work() {
  title = "work";
  for (Work work : {Work{1, 1, 1, 1}, Work{37, 11, 3, 2}, Work{16, 5, 5, 3}, Work{33, 7, 1, 1}})
    for (int blocks : {1, 3, 132}) {
      std::vector<int> seen((size_t)work.row_blocks * work.tiles * work.steps);
      for (int block = 0; block < blocks; block++)
        for (Cursor c(work, block); c.inside(); c.next(blocks)) {
          expect(c.item.part == c.item.tile / work.span, "a tile in another part");
          seen[((size_t)c.item.row_block * work.tiles + c.item.tile) * work.steps + c.step]++;
        }
      for (int times : seen) expect(times == 1, "a load comes " + std::to_string(times) + " times");
    }
}

void check_fragments() {
  title = "fragments";
  std::vector<int> seen(16 * 256);
  for (int lane = 0; lane < 32; lane++)
    for (int j = 0; j < 32; j++)
      for (int half = 0; half < 2; half++)
        for (int e = 0; e < 2; e++) seen[fragment_row(lane, half) * 256 + fragment_column(lane, j, e)]++;
  for (int times : seen) expect(times == 1, "an element of a tile is held " + std::to_string(times) + " times");
  for (int row = 0; row < 256; row++)
    for (int chunk = 0; chunk < 8; chunk++)
      expect(swizzle_128(row, chunk) == emulated::swizzled(row * 128 + chunk * 16), "swizzle_128 is not TMA's");
  for (auto swizzle : {swizzle_128, swizzle_64})
    for (int chunk = 0; chunk < 4; chunk++)
      for (int row = 0; row < 64; row += 8) {
        unsigned banks = 0;
        for (int i = 0; i < 8; i++) banks |= 1u << swizzle(row + i, chunk) % 128 / 16;
        expect(banks == 0xff, "eight rows share banks");
      }
}

template <class T>
void check_rows(int n, int width, int row, int column) {
  title = "rows " + std::to_string(n) + "x" + std::to_string(width);
  std::mt19937 random(width);
  std::vector<T> x((size_t)n * row + (size_t)width * column + 16);
  for (T& v : x) v = from_float<T>((int)(random() % 201 - 100) * 0.01f);
  for (int j = 0; j < width; j++) x[(size_t)(n - 1) * row + j * column] = from_float<T>(0.0f);
  const Strided strided = {x.data(), n, width, row, column, Dtype::Float32};
  const int stride = (width + 7) / 8 * 8, blocks = (n * 32 + ROWS_THREADS - 1) / ROWS_THREADS;
  Output<T> unit((size_t)n * width), packed((size_t)n * stride), dx((size_t)n * width);
  Output<float> inverse(n);
  std::vector<float> grad((size_t)n * width);
  for (float& g : grad) g = (int)(random() % 201 - 100) * 0.01f;
  const float factor = 0.5f;
  emulated::launch(blocks, ROWS_THREADS, 0, false,
                   [&] { normalize_body<T>(strided, true, unit.data(), width, nullptr); });
  emulated::launch(blocks, ROWS_THREADS, 0, false,
                   [&] { normalize_body<T>(strided, false, packed.data(), stride, inverse.data()); });
  emulated::launch(blocks, ROWS_THREADS, 0, false,
                   [&] { normalize_backward_body<T>(strided, grad.data(), &factor, true, dx.data()); });
  unit.check("unit");
  packed.check("packed");
  inverse.check("inverse");
  dx.check("dx");
  for (int i = 0; i < n; i++) {
    double squares = 0, along = 0;
    auto value = [&](int j) { return (double)to_float(x[(size_t)i * row + (size_t)j * column]); };
    for (int j = 0; j < width; j++) squares += value(j) * value(j), along += value(j) * grad[(size_t)i * width + j];
    const double norm = squares ? std::sqrt(squares) : 1e-12;
    expect(std::fabs(inverse[i] * norm - 1) < 1e-5, "inverse");
    for (int j = 0; j < stride; j++)
      expect(to_float(packed[(size_t)i * stride + j]) == (j < width ? (float)value(j) : 0.0f), "packed " + at(i, j));
    for (int j = 0; j < width; j++) {
      expect(std::fabs(to_float(unit[(size_t)i * width + j]) - value(j) / norm) < 0.01, "unit " + at(i, j));
      const double g = 0.5 * (grad[(size_t)i * width + j] - (squares ? value(j) / norm * along / norm : 0)) / norm;
      expect(std::fabs(to_float(dx[(size_t)i * width + j]) - g) < 0.01 * std::max(1.0, std::fabs(g)), "dx " + at(i, j));
    }
  }
}

}  // namespace

int main() {
  check_order();
  check_float32_products();
  check_work();
  check_fragments();
  check_rows<float>(5, 300, 304, 1);
  check_rows<bfloat16>(3, 520, 520, 1);
  check_rows<bfloat16>(6, 37, 1, 6);
  // Rows, columns, width, tiles of an item, blocks of threads, k, normalize, late
  const Case cases[] = {
      {1, 1, 1, 1, 1, 1, false, false},       {3, 257, 40, 1, 2, 100, false, true},
      {130, 530, 130, 2, 2, 5, false, false}, {70, 600, 30, 2, 2, 448, false, true},
      {70, 270, 72, 1, 3, 17, true, true},
  };
  for (const Case& c : cases) {
    check<Mma<float>>(c);
    check<Mma<bfloat16>>(c);
    check<Wgmma<bfloat16, false>>(c);
    if (c.n <= 64) check<Wgmma<float16, true>>(c);
  }
  for (bool late : {false, true}) {
    check<Mma<float16>>({33, 500, 200, 2, 2, 40, false, late});
    check<Wgmma<float16, false>>({129, 600, 200, 2, 2, 40, false, late});
    check<Wgmma<bfloat16, true>>({16, 500, 700, 3, 2, 40, late, late});
    check<Wgmma<bfloat16, true>>({64, 513, 65, 2, 2, 3, !late, late});
  }
  if (failures) fprintf(stderr, "%d failures\n", failures);
  return failures ? 1 : 0;
}
