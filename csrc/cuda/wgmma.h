// Scores in bf16 and fp16 on sm_90a: one warp keeps TMA loads in flight, two groups of four warps multiply by wgmma.
//
// A tile of 128 x 256, 64 rows a group: a step of 64 elements of K reads 48 KB and multiplies for 1024 clocks. Smaller
// tiles would ask the L2 for more than it gives: 128 x 128 for 64 bytes a clock and processor, where it has about 40.
// Four stages are 192 KB. The groups wait for loads only, not for each other: while one is in its epilogue the other
// multiplies, and the loads of the next tile, also of the next item, are under way.
//
// FEW rows, up to 64: the time is that of reading b once, so its norms are found in the same pass. The second group,
// which has no rows to multiply, adds up the squares of b's rows out of the same stages. A step reads 16 KB of b and
// multiplies for 256 clocks, 64 bytes a clock and processor where the memory gives 19; 128 KB of b are on their way.
#pragma once

#include "epilogue.h"

namespace altclip_fast::cuda {

template <bool FEW>
struct WgmmaTile {
  static constexpr int MI = 1, NJ = FEW ? 16 : 32;
  static constexpr int GROUPS = FEW ? 1 : 2, ROWS = 64 * GROUPS, COLUMNS = 8 * NJ;
  static constexpr int STEP = 64, STEP_BYTES = 128;
  static constexpr int STAGES = FEW ? 8 : 4, A_BYTES = ROWS * STEP_BYTES, STAGE_BYTES = A_BYTES + COLUMNS * STEP_BYTES;
  static constexpr int WORKERS = 256, THREADS = 384;  // two groups, and one of which a thread loads
  // After the stages: their barriers, the inverse norms of FEW, and what the epilogues of the groups need.
  static constexpr int BARRIERS = STAGES * STAGE_BYTES, NORMS = BARRIERS + 128,
                       SCRATCH = NORMS + (FEW ? COLUMNS * 4 : 0);
};

// Barriers of the ring: `filled` by the loads' bytes, `emptied` by the warps that read a stage.
template <class Tile>
struct Barriers {
  uint32_t first;
  DEVICE uint32_t filled(int stage) const { return first + stage * 8; }
  DEVICE uint32_t emptied(int stage) const { return first + (Tile::STAGES + stage) * 8; }
};

template <class Tile>
DEVICE void load_all(const TensorMap* a, const TensorMap* b, const Work& work, uint32_t stages,
                     Barriers<Tile> barriers) {
  Ring<Tile::STAGES> ring;
  for (Cursor loads(work, block()); loads.inside(); loads.next(blocks()), ring.next()) {
    const uint32_t stage = stages + ring.stage * Tile::STAGE_BYTES, filled = barriers.filled(ring.stage);
    barrier_wait(barriers.emptied(ring.stage), ring.phase ^ 1);  // the first round finds all of them empty
    barrier_arrive_expecting(filled, Tile::STAGE_BYTES);
    load_box(stage, a, filled, loads.step * Tile::STEP, loads.item.row_block * Tile::ROWS);
    load_box(stage + Tile::A_BYTES, b, filled, loads.step * Tile::STEP, loads.item.tile * Tile::COLUMNS);
  }
}

// The squares of 64 elements of one of b's rows a thread.
template <class T>
DEVICE float squares_of(const char* rows) {
  struct alignas(16) Eight {
    T x[8];
  };
  float sum = 0;
#pragma unroll
  for (int chunk = 0; chunk < 8; chunk++) {
    const Eight eight = *(const Eight*)(rows + swizzle_128(thread() % 128, chunk));
#pragma unroll
    for (int i = 0; i < 8; i++) sum += to_float(eight.x[i]) * to_float(eight.x[i]);
  }
  return sum;
}

// For every tile the inverse norms of its columns, as long as the multiplying group has not read those before.
template <class T, class Tile>
DEVICE void find_norms(const Work& work, char* memory, Barriers<Tile> barriers) {
  float* norms = (float*)(memory + Tile::NORMS);
  Ring<Tile::STAGES> ring;
  for (int index = block(); index < work.items(); index += blocks())
    for (Item item = item_of(work, index); item.tile < item.end; item.tile++) {
      float sum = 0;
#pragma unroll 1
      for (int step = 0; step < work.steps; step++, ring.next()) {
        barrier_wait(barriers.filled(ring.stage), ring.phase);
        sum += squares_of<T>(memory + ring.stage * Tile::STAGE_BYTES + Tile::A_BYTES);
        sync_warp();
        if (thread() % 32 == 0) barrier_arrive(barriers.emptied(ring.stage));
      }
      sync_pair();
      norms[thread() % 128] = inverse_norm(sum);
      sync_pair();
    }
}

template <class T, bool FEW, template <class, int, int> class Epilogue>
DEVICE void multiply_all(const Scores& s, const Work& work, char* memory, Barriers<WgmmaTile<FEW>> barriers,
                         const typename Epilogue<T, 1, 1>::Params& params) {
  using Tile = WgmmaTile<FEW>;
  using Ending = Epilogue<T, Tile::MI, Tile::NJ>;
  const uint32_t stages = shared_address(memory);
  Place<Tile::MI> place(memory + Tile::SCRATCH);
  place.scratch += place.group * Ending::SCRATCH;
  Ending epilogue(s, params, place);
  Ring<Tile::STAGES> ring, done;
  const uint32_t a_offset = place.group * 64 * Tile::STEP_BYTES;

  auto release = [&] {
    if (place.lane == 0) barrier_arrive(barriers.emptied(done.stage));
    done.next();
  };
#pragma unroll 1
  for (int index = block(); index < work.items(); index += blocks()) {
    Item item = item_of(work, index);
    place.first_row = item.row_block * Tile::ROWS + place.group * 64;
    epilogue.begin(item.part);
#pragma unroll 1
    for (; item.tile < item.end; item.tile++) {
      float x[Tile::MI][Tile::NJ][4] = {};
#pragma unroll 1
      for (int step = 0; step < work.steps; step++, ring.next()) {
        barrier_wait(barriers.filled(ring.stage), ring.phase);
        const uint32_t stage = stages + ring.stage * Tile::STAGE_BYTES;
        const uint64_t a = matrix_descriptor(stage + a_offset), b = matrix_descriptor(stage + Tile::A_BYTES);
        keep_in_place(x[0]);
        warpgroup_begin();
#pragma unroll
        for (int k = 0; k < 4; k++) warpgroup_multiply<T>(x[0], a + 2 * k, b + 2 * k);
        warpgroup_commit();
        keep_in_place(x[0]);
        warpgroup_wait<1>();
        if (step > 0) release();
      }
      warpgroup_wait<0>();
      keep_in_place(x[0]);
      release();

      const int first_column = item.tile * Tile::COLUMNS, columns = (int)s.b.rows - first_column;
      const float* factors = s.b.inverse ? s.b.inverse + first_column : nullptr;
      if (FEW && s.find_norms) {
        sync_pair();  // those of the last tile have been read
        sync_pair();
        factors = (const float*)(memory + Tile::NORMS);
      }
      scale_products(x, s, place, factors, columns);
      epilogue.tile(x, first_column);
    }
    epilogue.finish();
  }
}

template <class T, bool FEW, template <class, int, int> class Epilogue>
DEVICE void wgmma_body(const TensorMap* a, const TensorMap* b, const Scores& s, const Work& work,
                       const typename Epilogue<T, 1, 1>::Params& params) {
  using Tile = WgmmaTile<FEW>;
  char* memory = shared_memory();
  const Barriers<Tile> barriers = {shared_address(memory) + Tile::BARRIERS};
  const bool both = FEW ? s.find_norms : true;  // groups read each stage
  if (thread() == 0) {
    for (int stage = 0; stage < Tile::STAGES; stage++) {
      barrier_init(barriers.filled(stage), 1);
      barrier_init(barriers.emptied(stage), both ? 8 : 4);
    }
    barriers_are_made();
  }
  sync_block();
  if (thread() >= Tile::WORKERS) {
    fewer_registers<24>();
    if (thread() == Tile::WORKERS) load_all<Tile>(a, b, work, shared_address(memory), barriers);
  } else {
    more_registers<240>();
    if (!FEW || thread() < 128) {
      multiply_all<T, FEW, Epilogue>(s, work, memory, barriers, params);
    } else if (both) {
      find_norms<T, Tile>(work, memory, barriers);
    }
  }
}

}  // namespace altclip_fast::cuda
