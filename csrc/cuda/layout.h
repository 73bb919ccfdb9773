// Who works on what, and what lies where: index arithmetic, the same on the device and in the tests of the host.
#pragma once

#include "order.h"

namespace altclip_fast::cuda {

// A block of threads takes items: a block of a's rows with `span` tiles of b's rows; each tile takes `steps` loads.
struct Work {
  int row_blocks, tiles, span, steps;

  HOST_DEVICE int parts() const { return (tiles + span - 1) / span; }
  HOST_DEVICE int items() const { return row_blocks * parts(); }
};

struct Item {
  int row_block, part, tile, end;
};

// GROUP blocks of rows go over the columns together, so that they share them in the L2.
HOST_DEVICE Item item_of(const Work& work, int index) {
  constexpr int GROUP = 16;
  const int parts = work.parts(), top = index / (GROUP * parts) * GROUP;
  const int left = work.row_blocks - top, height = left < GROUP ? left : GROUP;
  const int within = index % (GROUP * parts), part = within / height;
  const int tile = part * work.span, end = tile + work.span;
  return {top + within % height, part, tile, end < work.tiles ? end : work.tiles};
}

// The loads of one block of threads, in order; those of the next tile, and of the next item, follow without a gap.
struct Cursor {
  const Work& work;
  int index, step;
  Item item;

  HOST_DEVICE Cursor(const Work& work, int first) : work(work), index(first), step(0), item() {
    if (inside()) item = item_of(work, index);
  }
  HOST_DEVICE bool inside() const { return index < work.items(); }
  HOST_DEVICE void next(int stride) {
    if (++step < work.steps) return;
    step = 0;
    if (++item.tile < item.end) return;
    index += stride;
    if (inside()) item = item_of(work, index);
  }
};

// A ring of buffers, and how often it went round: the parity that an mbarrier is waited for.
template <int STAGES>
struct Ring {
  int stage = 0;
  uint32_t phase = 0;

  HOST_DEVICE void next() {
    if (++stage == STAGES) {
      stage = 0;
      phase ^= 1;
    }
  }
};

// Accumulators of mma.m16n8 and of wgmma.m64nN (PTX ISA, "Matrix fragments"): a warp has 16 rows; of its element
// [half * 2 + e] of the j-th 8 columns a lane has this row and column.
HOST_DEVICE int fragment_row(int lane, int half) { return half * 8 + lane / 4; }
HOST_DEVICE int fragment_column(int lane, int j, int e) { return j * 8 + lane % 4 * 2 + e; }

// Where 16 bytes, the `chunk`-th of a row, lie in a tile of rows of 128 or of 64 bytes, so that eight rows of one chunk
// come from all banks. Of 128 bytes it is what TMA and wgmma call SWIZZLE_128B, for tiles aligned to 1024 bytes.
HOST_DEVICE uint32_t swizzle_128(int row, int chunk) { return row * 128 + ((chunk ^ row) & 7) * 16; }
HOST_DEVICE uint32_t swizzle_64(int row, int chunk) { return row * 64 + ((chunk ^ (row >> 1)) & 3) * 16; }

// The rows and chunks that the lanes of a warp give to ldmatrix.x4: of 16 rows of a, whose four 8 x 16 bytes are then
// the fragment of a; of 16 rows of b, two fragments of b.
HOST_DEVICE int a_fragment_row(int lane) { return lane % 16; }
HOST_DEVICE int a_fragment_chunk(int lane) { return lane / 16; }
HOST_DEVICE int b_fragment_row(int lane) { return lane % 8 + lane / 16 * 8; }
HOST_DEVICE int b_fragment_chunk(int lane) { return lane / 8 % 2; }

// wgmma's descriptor of rows of 128 bytes, K innermost, SWIZZLE_128B: eight rows are 1024 bytes. The next 16 elements
// of K are 32 bytes on, within the swizzled row.
HOST_DEVICE uint64_t matrix_descriptor(uint32_t shared_address) {
  return ((uint64_t)(shared_address & 0x3ffff) >> 4) | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 |
         (uint64_t)1 << 62;
}

}  // namespace altclip_fast::cuda
