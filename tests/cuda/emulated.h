// A multiprocessor on the host: every function of csrc/cuda/ptx.h, as the PTX ISA describes the instruction. The
// threads of a block are fibers that take turns where they wait, so a kernel's body runs as it is written and a
// deadlock is seen.
//
// What is asynchronous on the device (copies, TMA, wgmma) is done either at once or as late as a wait allows: `late`.
// What is right in both orders does not lean on luck: at once shows what is overwritten too early, late what is read
// too early.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <type_traits>
#include <vector>

#include "layout.h"

#define DEVICE inline

namespace altclip_fast::cuda {

struct TensorMap {  // of elements of 2 bytes
  const uint16_t* data;
  int64_t width, rows, stride;
  int box_rows;
};

namespace emulated {

[[noreturn]] inline void fail(const char* what) {
  fprintf(stderr, "emulated device: %s\n", what);
  exit(1);
}

struct Barrier {  // mbarrier
  int arrivals = 0, pending = 0;
  int64_t bytes = 0;
  uint32_t phase = 0;
  void settle() {
    if (pending < 0 || bytes < 0) fail("an mbarrier got more than it expects");
    if (pending == 0 && bytes == 0) {
      phase ^= 1;
      pending = arrivals;
    }
  }
};

struct Meeting {  // bar.sync, and the lanes of a warp
  int arrived = 0;
  int64_t round = 0;
};

struct Fiber {
  ucontext_t context;
  jmp_buf place;
  std::vector<char> stack = std::vector<char>(128 * 1024);
  bool started = false, done = false;
  std::deque<std::vector<std::function<void()>>> groups;  // of copies, or of products
  std::vector<std::function<void()>> open;
};

struct Warp {
  Meeting meeting;
  char in[32][64], out[32][64];
};

struct Machine {
  bool late = false;
  int block = 0, blocks = 1, current = 0, threads = 0;
  int64_t progress = 0;
  char* shared = nullptr;
  int shared_bytes = 0;
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Warp> warps;
  std::map<int, Meeting> meetings;
  std::map<uint32_t, Barrier> barriers;
  std::deque<std::function<void()>> boxes;
  jmp_buf scheduler;
  std::function<void()> body;
};
inline Machine machine;

inline void yield() {
  if (_setjmp(machine.fibers[machine.current]->place) == 0) _longjmp(machine.scheduler, 1);
}

template <class Ready>
void wait_until(Ready ready) {
  while (!ready()) yield();
  machine.progress++;
}

inline void meet(Meeting& m, int count) {
  const int64_t round = m.round;
  if (++m.arrived == count) {
    m.arrived = 0;
    m.round++;
  }
  wait_until([&] { return m.round != round; });
}

inline void run_fiber() {
  machine.body();
  machine.fibers[machine.current]->done = true;
  machine.progress++;
  _longjmp(machine.scheduler, 1);
}

inline void run_block(int shared_bytes) {
  Machine& m = machine;
  std::vector<char> memory(shared_bytes + 2048, (char)0xff);  // NaN
  m.shared = memory.data() + (1024 - (uintptr_t)memory.data() % 1024);
  m.shared_bytes = shared_bytes;
  m.warps.assign(m.threads / 32, {});
  m.meetings.clear();
  m.barriers.clear();
  while ((int)m.fibers.size() < m.threads) m.fibers.push_back(std::make_unique<Fiber>());
  for (auto& fiber : m.fibers) fiber->started = fiber->done = false;
  volatile int64_t seen = -1;
  while (true) {
    bool running = false;
    if (!m.boxes.empty()) {
      m.boxes.front()();
      m.boxes.pop_front();
      m.progress++;
    }
    for (m.current = 0; m.current < m.threads; m.current++) {
      Fiber& f = *m.fibers[m.current];
      if (f.done) continue;
      running = true;
      if (_setjmp(m.scheduler) == 0) {
        if (f.started) _longjmp(f.place, 1);
        f.started = true;
        getcontext(&f.context);
        f.context.uc_stack.ss_sp = f.stack.data();
        f.context.uc_stack.ss_size = f.stack.size();
        f.context.uc_link = nullptr;
        makecontext(&f.context, run_fiber, 0);
        setcontext(&f.context);
      }
    }
    if (!running) break;
    if (seen == m.progress) fail("deadlock");
    seen = m.progress;
  }
  for (auto& fiber : m.fibers)
    if (!fiber->open.empty() || (!fiber->groups.empty() && !m.late)) fiber->groups.clear(), fiber->open.clear();
  if (!m.boxes.empty()) fail("a block ended before its loads");
  for (int i = shared_bytes; i < shared_bytes + 1024 - 64 && m.shared + i < memory.data() + memory.size(); i++)
    if (m.shared[i] != (char)0xff) fail("shared memory was written beyond its end");
}

// body() on every thread of `blocks` blocks.
inline void launch(int blocks, int threads, int shared_bytes, bool late, std::function<void()> body) {
  machine.late = late;
  machine.blocks = blocks;
  machine.threads = threads;
  machine.body = body;
  for (machine.block = 0; machine.block < blocks; machine.block++) {
    for (auto& fiber : machine.fibers) fiber->groups.clear(), fiber->open.clear();
    run_block(shared_bytes);
  }
}

inline Fiber& fiber() { return *machine.fibers[machine.current]; }
inline char* at(uint32_t address, int bytes) {
  if ((int64_t)address + bytes > machine.shared_bytes) fail("shared memory: outside");
  return machine.shared + address;
}
inline void asynchronous(std::function<void()> work) {
  if (machine.late)
    fiber().open.push_back(work);
  else
    work();
}
inline void commit() {
  fiber().groups.push_back(fiber().open);
  fiber().open.clear();
}
inline void wait_groups(int pending) {
  while ((int)fiber().groups.size() > pending) {
    for (auto& work : fiber().groups.front()) work();
    fiber().groups.pop_front();
  }
}
// SWIZZLE_128B: bits 4 to 6 of the address are exchanged by bits 7 to 9.
inline uint32_t swizzled(uint32_t address) { return address ^ ((address >> 7 & 7) << 4); }

// What every lane of the warp gave.
template <class T>
const T* gather(const T& x) {
  static_assert(sizeof(T) <= 64);
  Warp& warp = machine.warps[machine.current / 32];
  memcpy(warp.in[machine.current % 32], &x, sizeof x);
  if (warp.meeting.arrived == 31) memcpy(warp.out, warp.in, sizeof warp.in);
  meet(warp.meeting, 32);
  return nullptr;
}
template <class T>
T given(int lane) {
  T x;
  memcpy(&x, machine.warps[machine.current / 32].out[lane], sizeof x);
  return x;
}

}  // namespace emulated

// Threads

inline int thread() { return emulated::machine.current; }
inline int block() { return emulated::machine.block; }
inline int blocks() { return emulated::machine.blocks; }
inline unsigned ballot(bool x) {
  emulated::gather(x);
  unsigned all = 0;
  for (int lane = 0; lane < 32; lane++) all |= (unsigned)emulated::given<bool>(lane) << lane;
  return all;
}
template <class T>
T shuffle(T x, int lane) {
  emulated::gather(x);
  return emulated::given<T>(lane);
}
template <class T>
T shuffle_xor(T x, int mask) {
  return shuffle(x, thread() % 32 ^ mask);
}
inline int ones(unsigned x) { return __builtin_popcount(x); }
inline int first_one(unsigned x) { return __builtin_ctz(x); }
inline void sync_warp() { emulated::gather(0); }
inline void sync_block() { emulated::meet(emulated::machine.meetings[0], emulated::machine.threads); }
inline void sync_group(int group) { emulated::meet(emulated::machine.meetings[group + 1], 128); }
inline void sync_pair() { emulated::meet(emulated::machine.meetings[3], 256); }
inline char* shared_memory() { return emulated::machine.shared; }
inline uint32_t shared_address(const void* p) { return (uint32_t)((const char*)p - emulated::machine.shared); }

// Numbers

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

inline float exp2_of(float x) { return exp2f(x); }
inline float to_float(float x) { return x; }
inline float to_float(bfloat16 x) { return float_of((int32_t)((uint32_t)x.bits << 16)); }
inline float to_float(float16 x) {
  _Float16 y;
  memcpy(&y, &x, 2);
  return (float)y;
}
template <class T>
T from_float(float x) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    const uint32_t bits = (uint32_t)bits_of(x);
    return {(uint16_t)(x != x ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
  } else if constexpr (std::is_same_v<T, float16>) {
    const _Float16 y = (_Float16)x;
    float16 made;
    memcpy(&made, &y, 2);
    return made;
  } else {
    return x;
  }
}
inline uint32_t to_tf32(float x) {
  const uint32_t bits = (uint32_t)bits_of(x);
  return (bits & 0x7f800000) == 0x7f800000 ? bits : (bits + 0x1000) & 0xffffe000;
}

// sm_80

inline void copy_async(uint32_t to, const void* from, int bytes) {
  if (bytes < 0 || bytes > 16 || to % 16 || (bytes && (uintptr_t)from % 16))
    emulated::fail("cp.async: not 16 aligned bytes");
  char* place = emulated::at(to, 16);
  emulated::asynchronous([=] {
    memset(place, 0, 16);
    memcpy(place, from, bytes);
  });
}
inline void commit_copies() { emulated::commit(); }
template <int PENDING>
void wait_copies() {
  emulated::wait_groups(PENDING);
}

// Matrix m has its eight rows at the addresses of lanes 8 m to 8 m + 7; a lane gets 4 bytes of row lane / 4.
inline void load_matrices(uint32_t address, uint32_t (&x)[4]) {
  emulated::gather(address);
  const int lane = thread() % 32;
  for (int m = 0; m < 4; m++) {
    const uint32_t row = emulated::given<uint32_t>(m * 8 + lane / 4);
    if (row % 16) emulated::fail("ldmatrix: not aligned");
    memcpy(&x[m], emulated::at(row, 16) + lane % 4 * 4, 4);
  }
  sync_warp();  // what was read may be overwritten from here on
}

// Element `i` of a register of fragments: two of 16 bits, or one TF32 number.
template <class T>
float element(uint32_t bits, int i) {
  if constexpr (sizeof(T) == 4)
    return float_of((int32_t)(bits & 0xffffe000));
  else
    return to_float(T{(uint16_t)(bits >> (16 * i))});
}

// m16n8k16 (k8 for TF32), "Matrix fragments" of mma: a[0], a[1], a[2], a[3] are rows g and g + 8 of the first half of
// K, then of the second; b0 and b1 are column g of both halves; g = lane / 4, and lane % 4 counts registers along K.
template <class T>
void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Given {
    uint32_t a[4], b[2];
  } given = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
  emulated::gather(given);
  const int lane = thread() % 32, each = 4 / sizeof(T);
  for (int r = 0; r < 4; r++) {
    const int row = lane / 4 + r / 2 * 8, column = lane % 4 * 2 + r % 2;
    float sum = 0;
    for (int half = 0; half < 2; half++)
      for (int t = 0; t < 4; t++) {
        const uint32_t left = emulated::given<Given>(row % 8 * 4 + t).a[half * 2 + row / 8];
        const uint32_t right = emulated::given<Given>(column * 4 + t).b[half];
        for (int i = 0; i < each; i++) sum += element<T>(left, i) * element<T>(right, i);
      }
    d[r] += sum;
  }
}

// sm_90a

inline void barrier_init(uint32_t barrier, int arrivals) {
  emulated::at(barrier, 8);
  emulated::machine.barriers[barrier] = {arrivals, arrivals, 0, 0};
}
inline void barriers_are_made() {}
inline emulated::Barrier& known(uint32_t barrier) {
  const auto found = emulated::machine.barriers.find(barrier);
  if (found == emulated::machine.barriers.end()) emulated::fail("an mbarrier that was not made");
  return found->second;
}
inline void arrive(uint32_t barrier, int bytes) {
  known(barrier).bytes += bytes;
  known(barrier).pending--;
  known(barrier).settle();
}
inline void barrier_arrive(uint32_t barrier) {
  arrive(barrier, 0);
  for (int i = 0; i < 12 && emulated::machine.late; i++) {  // whoever waited for this goes on, its loads arrive
    emulated::machine.progress++;
    emulated::yield();
  }
}
inline void barrier_arrive_expecting(uint32_t barrier, int bytes) { arrive(barrier, bytes); }
inline void barrier_wait(uint32_t barrier, uint32_t parity) {
  emulated::Barrier& b = known(barrier);
  emulated::wait_until([&] { return b.phase != parity; });
}
inline void load_box(uint32_t to, const TensorMap* map, uint32_t barrier, int column, int row) {
  if (to % 1024) emulated::fail("TMA: a swizzled tile is not aligned");
  auto work = [=] {
    for (int r = 0; r < map->box_rows; r++)
      for (int i = 0; i < 64; i++) {
        const bool inside = row + r < map->rows && column + i < map->width;
        const uint16_t x = inside ? map->data[(row + r) * map->stride + column + i] : 0;
        memcpy(emulated::at(emulated::swizzled(to + r * 128 + i * 2), 2), &x, 2);
      }
    known(barrier).bytes -= map->box_rows * 128;
    known(barrier).settle();
  };
  if (emulated::machine.late)
    emulated::machine.boxes.push_back(work);
  else
    work();
}
template <int REGISTERS>
void fewer_registers() {}
template <int REGISTERS>
void more_registers() {}
inline void warpgroup_begin() {}
inline void warpgroup_commit() { emulated::commit(); }
template <int PENDING>
void warpgroup_wait() {
  emulated::wait_groups(PENDING);
}
template <int N>
void keep_in_place(float (&)[N][4]) {}

// Element k of row `row` that a descriptor of K-major rows with SWIZZLE_128B describes.
template <class T>
float described(uint64_t descriptor, int row, int k) {
  if (descriptor >> 62 != 1) emulated::fail("wgmma: the descriptor is not of SWIZZLE_128B");
  const uint32_t start = (uint32_t)(descriptor & 0x3fff) << 4, eight_rows = (uint32_t)(descriptor >> 32 & 0x3fff) << 4;
  T x;
  memcpy(&x, emulated::at(emulated::swizzled(start + row / 8 * eight_rows + row % 8 * 128 + k * 2), 2), 2);
  return to_float(x);
}

// m64nNk16, "Matrix fragments" of wgmma: warp w has rows 16 w to 16 w + 15, of which a lane has lane / 4 and lane / 4
// + 8.
template <class T, int N>
void warpgroup_multiply(float (&d)[N][4], uint64_t a, uint64_t b) {
  float (*to)[4] = d;
  const int lane = thread() % 32, warp = thread() / 32 % 4;
  emulated::asynchronous([=] {
    float left[2][16];
    for (int half = 0; half < 2; half++)
      for (int k = 0; k < 16; k++) left[half][k] = described<T>(a, warp * 16 + lane / 4 + half * 8, k);
    for (int j = 0; j < N; j++)
      for (int e = 0; e < 2; e++)
        for (int k = 0; k < 16; k++) {
          const float right = described<T>(b, j * 8 + lane % 4 * 2 + e, k);
          for (int half = 0; half < 2; half++) to[j][half * 2 + e] += left[half][k] * right;
        }
  });
}

}  // namespace altclip_fast::cuda
