// What becomes of a tile of scores, in the registers that its product left it in.
//
// An epilogue belongs to a group of four warps. It begins at a block of rows and a part of the columns, sees the tiles
// of these one after another, and finishes. A warp has MI blocks of 16 whole rows, so a row is in the four lanes of a
// quad and nowhere else: what is found of a row needs no other warp. x[i][j][half * 2 + e] is the scaled score of row
// `place.row(i, half)` and column `first_column + fragment_column(lane, j, e)`; -inf beyond the last column.
#pragma once

#include "engine.h"
#include "topk.h"

namespace altclip_fast::cuda {

// One thread's place in a group.
template <int MI>
struct Place {
  int group, warp, lane;
  char* scratch;  // of the group
  int first_row;

  static constexpr int GROUP_ROWS = 64 * MI;

  DEVICE Place(char* scratch)
      : group(thread() / 128), warp(thread() / 32 % 4), lane(thread() % 32), scratch(scratch), first_row(0) {}
  DEVICE int row(int i, int half) const { return first_row + (warp * MI + i) * 16 + fragment_row(lane, half); }
};

#define EACH_ROW _Pragma("unroll") for (int i = 0; i < MI; i++) _Pragma("unroll") for (int half = 0; half < 2; half++)
#define EACH_COLUMN _Pragma("unroll") for (int j = 0; j < NJ; j++) _Pragma("unroll") for (int e = 0; e < 2; e++)

// Products -> scores of rows and of `columns` columns, which have these factors; null stands for ones.
template <int MI, int NJ>
DEVICE void scale_products(float (&x)[MI][NJ][4], const Scores& s, const Place<MI>& place, const float* column_factors,
                           int columns) {
  const float scale = s.factor ? s.scale * *s.factor : s.scale;
  float factor[MI][2];
  EACH_ROW {
    const int row = place.row(i, half);
    factor[i][half] = s.a.inverse && row < (int)s.a.rows ? scale * s.a.inverse[row] : scale;
  }
  EACH_COLUMN {
    const int column = fragment_column(place.lane, j, e);
    if (j % 8 == 0 && e == 0) sync_warp();  // all factors at once would take too many registers
    const float column_factor = column_factors && column < columns ? column_factors[column] : 1.0f;
    EACH_ROW {
      float& score = x[i][j][half * 2 + e];
      score = column < columns ? score * factor[i][half] * column_factor : -INFINITY;
    }
  }
}

template <class T>
DEVICE void store_pair(T* to, float first, float second, bool both, bool aligned) {
  if (both && aligned) {
    *(Two<T>*)to = {from_float<T>(first), from_float<T>(second)};
  } else {
    to[0] = from_float<T>(first);
    if (both) to[1] = from_float<T>(second);
  }
}

// A row's sum of 2^(x - m), as every lane sees it of its own columns.
template <int MI, int NJ>
DEVICE void add_row(LogSum& sum, const float (&x)[NJ][4], int half) {
  float most = sum.most;
  EACH_COLUMN
    most = fmaxf(most, x[j][half * 2 + e]);
  const float base = most == -INFINITY ? 0.0f : most;
  float total = sum.sum * exp2_of(sum.most - base);
  EACH_COLUMN
    total += exp2_of(x[j][half * 2 + e] - base);
  sum = {most, total};
}

// similarity, similarity_softmax: 2 D operations and sizeof(T) bytes written a score.
template <class T, int MI, int NJ>
struct Store {
  using Params = StoreParams;
  static constexpr int SCRATCH = 0;
  const Scores& s;
  const Params p;
  const Place<MI>& place;
  float most[MI][2], inverse[MI][2];

  DEVICE Store(const Scores& s, const Params& p, const Place<MI>& place) : s(s), p(p), place(place) {}

  DEVICE void begin(int) {
    EACH_ROW {
      const int row = place.row(i, half);
      const bool softmax = p.statistics && row < (int)s.a.rows;
      most[i][half] = softmax ? p.statistics[row] : 0.0f;
      inverse[i][half] = softmax ? 1.0f / p.statistics[s.a.rows + row] : 1.0f;
    }
  }

  DEVICE void tile(float (&x)[MI][NJ][4], int first_column) {
    const int n = (int)s.a.rows;
    const int m = (int)s.b.rows;
    EACH_ROW {
      const int row = place.row(i, half);
      if (row < n) {
#pragma unroll
        for (int j = 0; j < NJ; j++) {
          const int column = first_column + fragment_column(place.lane, j, 0);
          float pair[2];
#pragma unroll
          for (int e = 0; e < 2; e++) {
            const float score = x[i][j][half * 2 + e];
            pair[e] = p.statistics ? exp2_of(score - most[i][half]) * inverse[i][half] : score;
          }
          if (column < m)
            store_pair((T*)p.out + (int64_t)row * m + column, pair[0], pair[1], column + 1 < m, m % 2 == 0);
        }
      }
    }
  }

  DEVICE void finish() {}
};

// The first pass of similarity_softmax: largest score and sum of exponentials of every row of each part.
template <class T, int MI, int NJ>
struct RowSums {
  using Params = RowSumsParams;
  static constexpr int SCRATCH = 0;
  const Scores& s;
  const Params p;
  const Place<MI>& place;
  int part;
  LogSum sum[MI][2];

  DEVICE RowSums(const Scores& s, const Params& p, const Place<MI>& place) : s(s), p(p), place(place), part(0) {}

  DEVICE void begin(int part_) {
    part = part_;
    EACH_ROW
      sum[i][half] = no_log_sum();
  }

  DEVICE void tile(float (&x)[MI][NJ][4], int) {
    EACH_ROW
      add_row<MI>(sum[i][half], x[i], half);
  }

  DEVICE void finish() {
    EACH_ROW {
      LogSum all = sum[i][half];
#pragma unroll
      for (int mask = 1; mask < 4; mask *= 2) all = together(all, shuffle_xor(all, mask));
      const int row = place.row(i, half);
      if (place.lane % 4 == 0 && row < (int)s.a.rows) p.by_row[(int64_t)part * s.a.rows + row] = all;
    }
  }
};

// Of 2 * KEPT sums a lane and its partner each keep a half, with the other's in it.
template <int KEPT>
DEVICE void halve(LogSum* sum, int mask, int lane) {
  const bool upper = lane & mask;
#pragma unroll
  for (int c = 0; c < KEPT; c++) {
    const LogSum mine = upper ? sum[c + KEPT] : sum[c], theirs = upper ? sum[c] : sum[c + KEPT];
    sum[c] = together(mine, shuffle_xor(theirs, mask));
  }
}

// contrastive_loss: sums of rows, of columns over each group's rows, and the diagonal, in one sweep.
template <class T, int MI, int NJ>
struct PairSums {
  using Params = PairSumsParams;
  static constexpr int COLUMNS = NJ * 8;
  static constexpr int SCRATCH = 4 * COLUMNS * sizeof(LogSum);
  const Params p;
  RowSums<T, MI, NJ> rows;

  DEVICE PairSums(const Scores& s, const Params& p, const Place<MI>& place) : p(p), rows(s, p.rows, place) {}

  DEVICE void begin(int part) { rows.begin(part); }

  DEVICE void tile(float (&x)[MI][NJ][4], int first_column) {
    const Place<MI>& place = rows.place;
    const int n = (int)rows.s.a.rows;
    const int m = (int)rows.s.b.rows;
    rows.tile(x, first_column);

    const int crossing = p.first + place.first_row;
    if (first_column < crossing + place.GROUP_ROWS && crossing < first_column + COLUMNS)
      EACH_ROW
        EACH_COLUMN {
          const int row = place.row(i, half), column = first_column + fragment_column(place.lane, j, e);
          if (row < n && column < m && column == p.first + row) p.diagonal[row] = x[i][j][half * 2 + e];
        }

    // Eight lanes have the same columns, in different rows. Of 16 columns at a time they exchange halves, and end with
    // two.
    LogSum* shared = (LogSum*)place.scratch;
    sync_group(place.group);  // the last tile's have been read
#pragma unroll
    for (int first = 0; first < NJ; first += 8) {
      LogSum sum[16];
#pragma unroll
      for (int c = 0; c < 16; c++) {
        sum[c] = no_log_sum();
        EACH_ROW {
          const float score = x[i][first + c / 2][half * 2 + c % 2];
          const bool there = place.row(i, half) < n && score != -INFINITY;
          sum[c] = together(sum[c], there ? LogSum{score, 1.0f} : no_log_sum());
        }
      }
      halve<8>(sum, 16, place.lane);
      halve<4>(sum, 8, place.lane);
      halve<2>(sum, 4, place.lane);
      const int column = fragment_column(place.lane, first + place.lane / 4, 0);
      shared[place.warp * COLUMNS + column] = sum[0];
      shared[place.warp * COLUMNS + column + 1] = sum[1];
    }
    sync_group(place.group);
    const int block_of_rows = place.first_row / place.GROUP_ROWS;
    for (int c = thread() % 128; c < COLUMNS && first_column + c < m; c += 128) {
      LogSum all = shared[c];
      for (int warp = 1; warp < 4; warp++) all = together(all, shared[warp * COLUMNS + c]);
      p.by_column[(int64_t)block_of_rows * m + first_column + c] = all;
    }
  }

  DEVICE void finish() { rows.finish(); }
};

// The backward of contrastive_loss: P + Q - 2 I, and the sum of its products with the scores.
template <class T, int MI, int NJ>
struct Gradient {
  using Params = GradientParams;
  static constexpr int SCRATCH = 4 * sizeof(float);
  const Scores& s;
  const Params p;
  const Place<MI>& place;
  int part;
  float most[MI][2], inverse[MI][2], along;

  DEVICE Gradient(const Scores& s, const Params& p, const Place<MI>& place)
      : s(s), p(p), place(place), part(0), along(0) {}

  DEVICE void begin(int part_) {
    part = part_;
    along = 0;
    EACH_ROW {
      const int row = place.row(i, half);
      most[i][half] = row < (int)s.a.rows ? p.by_row[row] : 0.0f;
      inverse[i][half] = row < (int)s.a.rows ? 1.0f / p.by_row[p.row_plane + row] : 0.0f;
    }
  }

  DEVICE void tile(float (&x)[MI][NJ][4], int first_column) {
    const int n = (int)s.a.rows;
    const int m = (int)s.b.rows;
#pragma unroll
    for (int j = 0; j < NJ; j++) {
      const int column = first_column + fragment_column(place.lane, j, 0);
      float column_most[2], column_inverse[2];
#pragma unroll
      for (int e = 0; e < 2; e++) {
        column_most[e] = column + e < m ? p.by_column[column + e] : 0.0f;
        column_inverse[e] = column + e < m ? 1.0f / p.by_column[m + column + e] : 0.0f;
      }
      EACH_ROW {
        const int row = place.row(i, half);
        float pair[2];
#pragma unroll
        for (int e = 0; e < 2; e++) {
          const float score = x[i][j][half * 2 + e];
          pair[e] =
              exp2_of(score - most[i][half]) * inverse[i][half] + exp2_of(score - column_most[e]) * column_inverse[e];
          if (p.first + row == column + e) pair[e] -= 2.0f;
          if (row < n && column + e < m) along += pair[e] * score;
        }
        if (row < n && column < m)
          store_pair((T*)p.out + (int64_t)row * m + column, pair[0], pair[1], column + 1 < m, m % 2 == 0);
      }
    }
  }

  DEVICE void finish() {
    float* shared = (float*)place.scratch;
#pragma unroll
    for (int mask = 1; mask < 32; mask *= 2) along += shuffle_xor(along, mask);
    sync_group(place.group);
    if (place.lane == 0) shared[place.warp] = along;
    sync_group(place.group);
    if (thread() % 128 == 0)
      p.along[(int64_t)(place.first_row / place.GROUP_ROWS) * p.parts + part] =
          (shared[0] + shared[1]) + (shared[2] + shared[3]);
  }
};

// similarity_argmax: the best of each row and part. Nearly all tiles are passed over with one comparison a score.
template <class T, int MI, int NJ>
struct Best {
  using Params = TopKParams;
  static constexpr int SCRATCH = 0;
  const Scores& s;
  const Params p;
  const Place<MI>& place;
  int part;
  int key[MI][2], index[MI][2];  // of the best score that this lane has seen
  float floor[MI][2];            // that score, or NaN: nothing is at most NaN, so all pass

  DEVICE Best(const Scores& s, const Params& p, const Place<MI>& place) : s(s), p(p), place(place), part(0) {}

  DEVICE void begin(int part_) {
    part = part_;
    EACH_ROW {
      key[i][half] = LEAST_KEY;
      index[i][half] = INT32_MAX;
      floor[i][half] = NAN;
    }
  }

  DEVICE void tile(float (&x)[MI][NJ][4], int first_column) {
    EACH_ROW {
      bool better = false;
      EACH_COLUMN {
        float& score = x[i][j][half * 2 + e];
        score = to_float(from_float<T>(score));  // what is equal in the result is a tie
        better |= !(score <= floor[i][half]);
      }
      if (better) {
        EACH_COLUMN {
          const int found = key_of(x[i][j][half * 2 + e]);
          if (found > key[i][half]) {  // columns rise: of equal ones the first stays
            key[i][half] = found;
            index[i][half] = first_column + fragment_column(place.lane, j, e);
          }
        }
        floor[i][half] = score_of(key[i][half]);
      }
    }
  }

  DEVICE void finish() {
    EACH_ROW {
      Candidate all = candidate_of(key[i][half], index[i][half]);
#pragma unroll
      for (int mask = 1; mask < 4; mask *= 2) {
        const Candidate other = shuffle_xor(all, mask);
        all = other > all ? other : all;
      }
      const int row = place.row(i, half);
      if (place.lane % 4 == 0 && row < (int)s.a.rows) p.candidates[(int64_t)row * p.parts + part] = all;
    }
  }
};

constexpr int TOPK_SLOTS = 512;

// similarity_topk: what is better than the least of a row's k candidates is appended to them; they are k (1 + log(M /
// k)) in all. The slots lie in global memory, which only these rows touch. Most tiles have nothing for a row, so the
// code that appends is there once, for all of a thread's rows, whose states lie in shared memory.
template <class T, int MI, int NJ>
struct TopK {
  using Params = TopKParams;
  struct State {
    int count;    // of a row's slots that are taken
    float floor;  // the least of k candidates when they were last sorted; NaN, which all scores pass, before that
  };
  static constexpr int SLOT_BYTES = TOPK_SLOTS * sizeof(Candidate), WARP_BYTES = SLOT_BYTES + 16 * MI * sizeof(State);
  static constexpr int SCRATCH = 4 * WARP_BYTES;
  const Scores& s;
  const Params p;
  const Place<MI>& place;
  int part;

  DEVICE TopK(const Scores& s, const Params& p, const Place<MI>& place) : s(s), p(p), place(place), part(0) {}

  DEVICE Candidate* scratch() const { return (Candidate*)(place.scratch + place.warp * WARP_BYTES); }
  DEVICE State& state(int i, int row) const {
    return ((State*)(place.scratch + place.warp * WARP_BYTES + SLOT_BYTES))[i * 16 + row];
  }
  DEVICE Candidate* slots(int row) const { return p.candidates + ((int64_t)row * p.parts + part) * p.slots; }

  DEVICE void begin(int part_) {
    part = part_;
    if (place.lane < 16)
      for (int i = 0; i < MI; i++) state(i, place.lane) = {0, NAN};
    sync_warp();
  }

  // Sorts and cuts the candidates of those rows, one of each quad, that `due` holds a lane of.
  DEVICE void prune_rows(unsigned due, int i, int half) const {
#pragma unroll 1
    while (due) {
      const int lane = first_one(due);
      due &= ~(0xfu << lane / 4 * 4);
      State& mine = state(i, fragment_row(lane, half));
      const int row = place.first_row + (place.warp * MI + i) * 16 + fragment_row(lane, half);
      const Candidate least = prune(slots(row), mine.count, p.k, scratch(), p.slots);
      if (place.lane == 0 && least != NO_CANDIDATE) mine = {p.k, score_of(least)};
      sync_warp();
    }
  }

  // Appends what row (i, half) wants of a tile.
  DEVICE void visit(const float (&x)[MI][NJ][4], int i, int half, int first_column) const {
    constexpr int CHUNK = ARRIVING / 8;
    const unsigned quad = 0xfu << place.lane / 4 * 4;
    const int row = place.row(i, half), end = row < (int)s.a.rows ? (int)s.b.rows : 0;
    State& mine = state(i, fragment_row(place.lane, half));
    Candidate* const to = slots(row);
#pragma unroll
    for (int chunk = 0; chunk < NJ; chunk += CHUNK) {
      prune_rows(ballot(mine.count + ARRIVING > p.slots), i, half);
      const int column = first_column + fragment_column(place.lane, chunk, 0);
      const float floor = mine.floor;
      int count = mine.count;
#pragma unroll
      for (int c = 0; c < 2 * CHUNK; c++) {
        const float (&two)[4] = x[MI > 1 ? 1 : 0][chunk + c / 2], (&one)[4] = x[0][chunk + c / 2];
        const float score = i ? (half ? two[2 + c % 2] : two[c % 2]) : (half ? one[2 + c % 2] : one[c % 2]);
        // Equal scores that come later have higher indices: they are not better.
        const bool wanted = !(score <= floor) && column + c / 2 * 8 + c % 2 < end;
        count = append(to, count, wanted, quad, candidate(score, column + c / 2 * 8 + c % 2));
      }
      sync_warp();
      if (place.lane % 4 == 0) mine.count = count;
      sync_warp();
    }
  }

  DEVICE void tile(float (&x)[MI][NJ][4], int first_column) {
    unsigned waiting = 0;
    EACH_ROW {
      const float floor = state(i, fragment_row(place.lane, half)).floor;
      bool any = false;
      EACH_COLUMN {
        float& score = x[i][j][half * 2 + e];
        score = to_float(from_float<T>(score));  // what is equal in the result is a tie
        any |= !(score <= floor);
      }
      waiting |= (ballot(any && place.row(i, half) < (int)s.a.rows) != 0) << (i * 2 + half);
    }
#pragma unroll 1
    for (int r = 0; r < 2 * MI; r++)
      if (waiting >> r & 1) visit(x, r / 2, r % 2, first_column);
  }

  DEVICE void finish() const {
#pragma unroll 1
    for (int r = 0; r < 2 * MI; r++) prune_rows(ballot(place.row(r / 2, r % 2) < (int)s.a.rows), r / 2, r % 2);
  }
};

}  // namespace altclip_fast::cuda
