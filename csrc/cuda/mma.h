// Scores on sm_80 and later, and in float32 everywhere: cp.async into a ring of stages, mma.sync out of it.
//
// A tile of 128 x 128 (float32: 64 x 128) by four warps of 32 x 128: a step of 64 bytes of K reads 16 KB and multiplies
// for 512 clocks of an A100, 16 bytes a clock and processor, which is more than its memory gives: few rows are bound by
// memory. Two blocks of threads a processor: one multiplies while the other is in its epilogue.
//
// float32 is three products of TF32 numbers, x = high + low, without low * low. Tensor cores cut off where they add up,
// so the products of each step are summed apart and then added in float32. `tf32`, where torch allows it, takes high *
// high only.
#pragma once

#include "epilogue.h"

namespace altclip_fast::cuda {

template <class T>
struct MmaTile {
  static constexpr int MI = sizeof(T) == 4 ? 1 : 2, NJ = 16;
  static constexpr int ROWS = 64 * MI, COLUMNS = 8 * NJ, GROUPS = 1, THREADS = 128;
  static constexpr int STEP_BYTES = 64, STEP = STEP_BYTES / sizeof(T);
  static constexpr int STAGES = 4, STAGE_BYTES = (ROWS + COLUMNS) * STEP_BYTES;
};

// One stage: 64 bytes of each of COUNT rows from `first` on; zeros beyond the last row and the last column.
template <class T, int COUNT>
DEVICE void copy_rows(uint32_t to, const Matrix& x, int first, int column) {
#pragma unroll
  for (int n = 0; n < COUNT * 4 / 128; n++) {
    const int i = n * 128 + thread();
    const int row = first + i / 4, left = ((int)x.width - column) * (int)sizeof(T) - i % 4 * 16;
    const int bytes = row < (int)x.rows && left > 0 ? (left < 16 ? left : 16) : 0;
    const T* from = (const T*)x.data + row * x.stride + column + i % 4 * (16 / sizeof(T));
    copy_async(to + swizzle_64(i / 4, i % 4), bytes ? from : (const T*)x.data, bytes);
  }
}

// x = high + low, each of them a TF32 number. What is not finite has no low part.
DEVICE void split(const uint32_t (&x)[4], uint32_t (&high)[4], uint32_t (&low)[4]) {
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const float value = float_of((int32_t)x[i]);
    high[i] = to_tf32(value);
    const float rest = value - float_of((int32_t)high[i]);
    low[i] = to_tf32(rest == rest ? rest : 0.0f);
  }
}

template <class T, int MI, int NJ>
DEVICE void multiply_stage(float (&x)[MI][NJ][4], uint32_t stage, bool tf32) {
  constexpr bool WIDE = sizeof(T) == 4;
  const int lane = thread() % 32, warp = thread() / 32;
  float partial[MI][WIDE ? NJ : 1][4] = {};
#pragma unroll
  for (int k = 0; k < 2; k++) {
    uint32_t a[MI][4], a_low[MI][4];
    const uint32_t a_address = stage + swizzle_64(a_fragment_row(lane), 2 * k + a_fragment_chunk(lane));
    const uint32_t b_address = stage + 64 * MI * 64 + swizzle_64(b_fragment_row(lane), 2 * k + b_fragment_chunk(lane));
#pragma unroll
    for (int i = 0; i < MI; i++) {
      load_matrices(a_address + (warp * MI + i) * 16 * 64, a[i]);
      if constexpr (WIDE) {
        const uint32_t both[4] = {a[i][0], a[i][1], a[i][2], a[i][3]};
        split(both, a[i], a_low[i]);
      }
    }
#pragma unroll
    for (int j = 0; j < NJ; j += 2) {
      uint32_t b[4];
      load_matrices(b_address + j * 8 * 64, b);
      if constexpr (WIDE) {
        uint32_t high[4], low[4];
        split(b, high, low);
#pragma unroll
        for (int i = 0; i < MI; i++)
#pragma unroll
          for (int n = 0; n < 2; n++) {
            if (!tf32) {
              multiply<T>(partial[i][j + n], a_low[i], high[2 * n], high[2 * n + 1]);
              multiply<T>(partial[i][j + n], a[i], low[2 * n], low[2 * n + 1]);
            }
            multiply<T>(partial[i][j + n], a[i], high[2 * n], high[2 * n + 1]);
          }
      } else {
#pragma unroll
        for (int i = 0; i < MI; i++)
#pragma unroll
          for (int n = 0; n < 2; n++) multiply<T>(x[i][j + n], a[i], b[2 * n], b[2 * n + 1]);
      }
    }
  }
  if constexpr (WIDE) {
#pragma unroll
    for (int i = 0; i < MI; i++)
#pragma unroll
      for (int j = 0; j < NJ; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) x[i][j][e] += partial[i][j][e];
  }
}

template <class T, template <class, int, int> class Epilogue>
DEVICE void mma_body(const Scores& s, const Work& work, const typename Epilogue<T, 1, 1>::Params& params) {
  using Tile = MmaTile<T>;
  char* memory = shared_memory();
  const uint32_t stages = shared_address(memory);
  Cursor loads(work, block());
  Ring<Tile::STAGES> filled, used;

  auto load = [&] {
    if (loads.inside()) {
      const uint32_t stage = stages + filled.stage * Tile::STAGE_BYTES;
      const int column = loads.step * Tile::STEP;
      copy_rows<T, Tile::ROWS>(stage, s.a, loads.item.row_block * Tile::ROWS, column);
      copy_rows<T, Tile::COLUMNS>(stage + Tile::ROWS * Tile::STEP_BYTES, s.b, loads.item.tile * Tile::COLUMNS, column);
      loads.next(blocks());
      filled.next();
    }
    commit_copies();
  };
#pragma unroll 1
  for (int i = 0; i < Tile::STAGES - 1; i++) load();

  Place<Tile::MI> place(memory + Tile::STAGES * Tile::STAGE_BYTES);
  Epilogue<T, Tile::MI, Tile::NJ> epilogue(s, params, place);
#pragma unroll 1
  for (int index = block(); index < work.items(); index += blocks()) {
    Item item = item_of(work, index);
    place.first_row = item.row_block * Tile::ROWS;
    epilogue.begin(item.part);
#pragma unroll 1
    for (; item.tile < item.end; item.tile++) {
      float x[Tile::MI][Tile::NJ][4] = {};
#pragma unroll 1
      for (int step = 0; step < work.steps; step++) {
        wait_copies<Tile::STAGES - 2>();
        sync_block();  // the copies of all threads are there, and the stage before this has been read by all
        load();
        multiply_stage<T>(x, stages + used.stage * Tile::STAGE_BYTES, s.tf32);
        used.next();
      }
      const int first_column = item.tile * Tile::COLUMNS, columns = (int)s.b.rows - first_column;
      scale_products(x, s, place, s.b.inverse ? s.b.inverse + first_column : nullptr, columns);
      epilogue.tile(x, first_column);
    }
    epilogue.finish();
  }
}

}  // namespace altclip_fast::cuda
