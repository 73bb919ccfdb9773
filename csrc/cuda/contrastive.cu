// How the work on N x M scores is shared out, and which engine does it.
#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "engine.h"
#include "launch.h"

namespace altclip_fast::cuda {
namespace {

constexpr int MOST_PARTS = 256;  // of b's rows, where each leaves a partial sum
constexpr int MOST_TOPK_PARTS = 1024;

// ALTCLIP_FAST_CUDA_ENGINE=mma takes mma.sync also where there is wgmma: to compare them.
bool has_wgmma(const Device& device) {
  static const char* asked = std::getenv("ALTCLIP_FAST_CUDA_ENGINE");
  return WGMMA && device.capability == 90 && !(asked && !std::strcmp(asked, "mma"));
}

bool is_few(int64_t rows) { return rows <= 64; }

const Engine& engine_of(const Scores& s, const Device& device, bool few_too = true) {
  if (s.dtype == Dtype::Float32) return mma::float32;
  const bool half = s.dtype == Dtype::Float16;
#if WGMMA  // sm_90a is among the architectures of this build
  if (has_wgmma(device)) {
    if (few_too && is_few(s.a.rows)) return half ? wgmma::few_float16 : wgmma::few_bfloat16;
    return half ? wgmma::float16 : wgmma::bfloat16;
  }
#endif
  return half ? mma::float16 : mma::bfloat16;
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

Work work_of(const Scores& s, const Engine& engine, int64_t most_parts) {
  const int64_t row_blocks = ceil_div(s.a.rows, engine.rows), tiles = ceil_div(s.b.rows, engine.columns);
  const int64_t span = ceil_div(tiles, std::max<int64_t>(1, std::min(tiles, most_parts)));
  const Work work = {(int)row_blocks, (int)tiles, (int)span,
                     (int)std::max<int64_t>(1, ceil_div(s.a.width, engine.step))};
  if (s.a.rows > INT32_MAX / 2 || s.b.rows > INT32_MAX / 2 || row_blocks * ceil_div(tiles, span) > INT32_MAX / 2)
    throw std::runtime_error("similarity: more than 2^30 rows, or tiles of scores, in one call");
  return work;
}

Work work_of_sums(const Scores& s, const Engine& engine) { return work_of(s, engine, MOST_PARTS); }

Work work_of_candidates(const Scores& s, const Engine& engine, const Device& device) {
  return work_of(s, engine,
                 std::min<int64_t>(MOST_TOPK_PARTS, ceil_div(2 * device.processors, ceil_div(s.a.rows, engine.rows))));
}

Plan plan_of(const Work& work, const Engine& engine) {
  return {(int64_t)work.row_blocks * (engine.rows / engine.group_rows), work.parts()};
}

LogSum* log_sums_at(float* x) { return reinterpret_cast<LogSum*>(x); }

}  // namespace

Device device(int index, void* stream) {
  int processors, major, minor;
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, index));
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index));
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index));
  return {stream, processors, major * 10 + minor};
}

bool finds_norms(int64_t rows, Dtype dtype, const Device& device) {
  return dtype != Dtype::Float32 && has_wgmma(device) && is_few(rows);
}

Plan plan_of_sums(const Scores& s, bool columns, const Device& device) {
  const Engine& engine = engine_of(s, device, !columns);
  return plan_of(work_of_sums(s, engine), engine);
}

Plan plan_of_candidates(const Scores& s, const Device& device) {
  const Engine& engine = engine_of(s, device);
  return plan_of(work_of_candidates(s, engine, device), engine);
}

int64_t candidate_slots(int64_t k) { return k == 1 ? 1 : slots_for(k, ARRIVING); }

void similarity(const Scores& s, const float* statistics, void* out, const Device& device) {
  const Engine& engine = engine_of(s, device);
  engine.store(s, work_of(s, engine, INT32_MAX), {statistics, out}, device);
}

void log_sums(const Scores& s, int64_t first, float* by_row, float* by_column, float* diagonal, const Device& device) {
  const Engine& engine = engine_of(s, device, !by_column);
  const Work work = work_of_sums(s, engine);
  if (by_column)
    engine.pair_sums(s, work, {{log_sums_at(by_row)}, log_sums_at(by_column), diagonal, (int)first}, device);
  else
    engine.row_sums(s, work, {log_sums_at(by_row)}, device);
}

void contrastive_gradient(const Scores& s, int64_t first, const float* by_row, int64_t row_plane,
                          const float* by_column, void* out, float* along, const Device& device) {
  const Engine& engine = engine_of(s, device, false);
  const Work work = work_of_sums(s, engine);
  engine.gradient(s, work, {by_row, row_plane, by_column, out, along, (int)first, work.parts()}, device);
}

void candidates(const Scores& s, int64_t k, int64_t* found, const Device& device) {
  const Engine& engine = engine_of(s, device);
  const Work work = work_of_candidates(s, engine, device);
  const TopKParams params = {found, work.parts(), (int)k, (int)candidate_slots(k)};
  (k == 1 ? engine.best : engine.topk)(s, work, params, device);
}

}  // namespace altclip_fast::cuda
