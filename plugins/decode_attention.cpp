// Streaming attention of one decode step on the CPU (plugins/reference.py defines it).
//
// One call rotates the new token's query and key, writes its key and value into the ring, and attends: every visible
// key and value is read once, in place. The query is rotated twice, to t for the ring and to p(t) for the sinks, so
// that no stored key is ever rotated again. The cache is split into blocks that threads work on independently and whose
// softmax sums are merged at the end, as flash-decoding does, so that one session can use every core.
//
// Compiled for one model with -DHEAD_DIM, -DNUM_HEADS, -DNUM_KV_HEADS, -DWIDTH (slots per session), -DMAX_SINKS and
// -DBFLOAT16 (0 or 1), and with -fopenmp. There is no PyTorch in it: tensors arrive as pointers.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace {

constexpr int64_t kHalf = HEAD_DIM / 2;
constexpr int64_t kGroup = NUM_HEADS / NUM_KV_HEADS;
constexpr int64_t kRing = WIDTH - MAX_SINKS;
constexpr int64_t kBlock = 256;  // cache slots per work item
constexpr int64_t kBlocks = (WIDTH + kBlock - 1) / kBlock;

#if BFLOAT16
using scalar = uint16_t;
inline float load(scalar x) {
  const uint32_t bits = uint32_t(x) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline scalar store(float value) {  // round to nearest, ties to even; a NaN stays one
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffff) > 0x7f800000) return scalar((bits >> 16) | 0x40);
  return scalar((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
#else
using scalar = float;
inline float load(scalar x) { return x; }
inline scalar store(float value) { return value; }
#endif

// One session at this step. Mirrors Row in plugins/decode_plan.py.
struct Row {
  int64_t lane;            // the session's place in the batch
  int64_t write;           // cache slot of the new token
  int64_t num_sinks;       // visible sinks, in slots [0, num_sinks)
  int64_t ring_count;      // visible ring tokens, the new one included
  int64_t newest;          // ring index of the newest of them
  int64_t cache_position;  // p(t)
};

// The share of one block of slots in a head's softmax: running maximum, sum of exponentials, weighted sum of values.
struct Partial {
  float max, sum, value[HEAD_DIM];
};

// Working memory of one session at one step, allocated by the caller: `scratch_bytes` bytes.
struct Scratch {
  float query_at_t[NUM_HEADS][HEAD_DIM];
  float query_at_p[NUM_HEADS][HEAD_DIM];
  Partial partial[NUM_HEADS][kBlocks];
};

void rotate(const scalar* x, const float* cos, const float* sin, float* out) {
  for (int64_t i = 0; i < kHalf; ++i) {
    const float first = load(x[i]), second = load(x[i + kHalf]);
    out[i] = first * cos[i] - second * sin[i];
    out[i + kHalf] = second * cos[i] + first * sin[i];
  }
}

// A run of cache slots [begin, end) that one rotated query serves, clipped to a block.
struct Run {
  int64_t begin, end;
  bool sinks;
};

int visible_runs(const Row& row, int64_t block_begin, int64_t block_end, Run* runs) {
  const int64_t oldest = row.newest - row.ring_count + 1;  // negative when the ring has wrapped
  const Run all[3] = {
      {0, row.num_sinks, true},
      {MAX_SINKS + std::max<int64_t>(oldest, 0), MAX_SINKS + row.newest + 1, false},
      {MAX_SINKS + oldest + kRing, WIDTH, false},  // empty unless wrapped
  };
  int count = 0;
  for (const Run& run : all) {
    const int64_t begin = std::max(run.begin, block_begin), end = std::min(run.end, block_end);
    if (begin < end) runs[count++] = {begin, end, run.sinks};
  }
  return count;
}

// Attend from one group of query heads to one block of its key-value head's cache.
void attend_block(const Row& row, const scalar* keys, const scalar* values, const Scratch& scratch, int64_t kv_head,
                  int64_t block, const float* slopes, Partial (*partial)[kBlocks]) {
  const int64_t block_begin = block * kBlock, block_end = std::min<int64_t>(block_begin + kBlock, WIDTH);
  const float scale = 1.0f / std::sqrt(float(HEAD_DIM));
  Run runs[3];
  const int num_runs = visible_runs(row, block_begin, block_end, runs);

  float scores[kGroup][kBlock];
  float max[kGroup];
  std::fill(max, max + kGroup, std::numeric_limits<float>::lowest());
  for (int r = 0; r < num_runs; ++r) {
    const Run run = runs[r];
    const auto* query = (run.sinks ? scratch.query_at_p : scratch.query_at_t) + kv_head * kGroup;
    for (int64_t slot = run.begin; slot < run.end; ++slot) {
      const scalar* key = keys + slot * HEAD_DIM;
      for (int64_t g = 0; g < kGroup; ++g) {
        float dot = 0;
        for (int64_t i = 0; i < HEAD_DIM; ++i) dot += query[g][i] * load(key[i]);
        dot *= scale;
        if (slopes) {
          const int64_t age = row.newest - (slot - MAX_SINKS);
          const int64_t distance = run.sinks ? row.cache_position - slot : age < 0 ? age + kRing : age;
          dot -= slopes[kv_head * kGroup + g] * float(distance);
        }
        scores[g][slot - block_begin] = dot;
        max[g] = std::max(max[g], dot);
      }
    }
  }

  float value[kGroup][HEAD_DIM] = {};
  float sum[kGroup] = {};
  for (int r = 0; r < num_runs; ++r) {
    const Run run = runs[r];
    for (int64_t g = 0; g < kGroup; ++g) {
      float* weight = scores[g] - block_begin;
      for (int64_t slot = run.begin; slot < run.end; ++slot) weight[slot] = std::exp(weight[slot] - max[g]);
      for (int64_t slot = run.begin; slot < run.end; ++slot) sum[g] += weight[slot];
    }
    for (int64_t slot = run.begin; slot < run.end; ++slot) {
      const scalar* row_values = values + slot * HEAD_DIM;
      for (int64_t g = 0; g < kGroup; ++g) {
        const float weight = scores[g][slot - block_begin];
        for (int64_t i = 0; i < HEAD_DIM; ++i) value[g][i] += weight * load(row_values[i]);
      }
    }
  }
  for (int64_t g = 0; g < kGroup; ++g) {
    Partial& out = partial[kv_head * kGroup + g][block];
    out.max = max[g];
    out.sum = sum[g];
    std::copy(value[g], value[g] + HEAD_DIM, out.value);
  }
}

void merge_blocks(const Partial* partial, scalar* out) {
  float max = std::numeric_limits<float>::lowest();
  for (int64_t b = 0; b < kBlocks; ++b)
    if (partial[b].sum > 0) max = std::max(max, partial[b].max);
  float sum = 0, value[HEAD_DIM] = {};
  for (int64_t b = 0; b < kBlocks; ++b) {
    if (!(partial[b].sum > 0)) continue;  // nothing visible in this block
    const float weight = std::exp(partial[b].max - max);
    sum += weight * partial[b].sum;
    for (int64_t i = 0; i < HEAD_DIM; ++i) value[i] += weight * partial[b].value[i];
  }
  for (int64_t i = 0; i < HEAD_DIM; ++i) out[i] = store(value[i] / sum);
}

}  // namespace

// The sizes that the kernel was compiled for, so that it is never called with another model's tensors.
extern "C" const int64_t kernel_geometry[] = {HEAD_DIM, NUM_HEADS, NUM_KV_HEADS, WIDTH, MAX_SINKS, BFLOAT16};

extern "C" int64_t scratch_bytes() { return sizeof(Scratch); }

// qkv [batch, (NUM_HEADS + 2 NUM_KV_HEADS) HEAD_DIM]: projected, not rotated.
// rotation [batch, 4, HEAD_DIM / 2]: cos and sin at t, cos and sin at p(t); null for ALiBi.
// slopes [NUM_HEADS]: ALiBi's, divided by sqrt(HEAD_DIM); null for RoPE.
// cache: this layer's keys and values of session 0, [2, NUM_KV_HEADS, WIDTH, HEAD_DIM]; the next session's are
//     `session_stride` elements further.
// out [batch, NUM_HEADS HEAD_DIM].
extern "C" void decode_attention(const scalar* qkv, const float* rotation, const float* slopes, scalar* cache,
                                 int64_t session_stride, const Row* rows, int64_t batch, Scratch* scratch, scalar* out) {
  constexpr int64_t kQkv = (NUM_HEADS + 2 * NUM_KV_HEADS) * HEAD_DIM;
  constexpr int64_t kHeadCache = int64_t(WIDTH) * HEAD_DIM, kValues = NUM_KV_HEADS * kHeadCache;
#pragma omp parallel
  {
#pragma omp for collapse(2) schedule(static)
    for (int64_t b = 0; b < batch; ++b) {
      for (int64_t head = 0; head < NUM_HEADS + NUM_KV_HEADS; ++head) {  // queries, then keys with their values
        const scalar* x = qkv + b * kQkv + head * HEAD_DIM;
        const float* angle = rotation + b * 4 * kHalf;
        if (head < NUM_HEADS) {
          float *at_t = scratch[b].query_at_t[head], *at_p = scratch[b].query_at_p[head];
          if (rotation) {
            rotate(x, angle, angle + kHalf, at_t);
            rotate(x, angle + 2 * kHalf, angle + 3 * kHalf, at_p);
          } else {
            for (int64_t i = 0; i < HEAD_DIM; ++i) at_t[i] = at_p[i] = load(x[i]);
          }
          continue;
        }
        scalar* key = cache + rows[b].lane * session_stride + (head - NUM_HEADS) * kHeadCache + rows[b].write * HEAD_DIM;
        if (rotation) {
          float rotated[HEAD_DIM];
          rotate(x, angle, angle + kHalf, rotated);
          for (int64_t i = 0; i < HEAD_DIM; ++i) key[i] = store(rotated[i]);
        } else {
          std::copy(x, x + HEAD_DIM, key);
        }
        const scalar* value = x + NUM_KV_HEADS * HEAD_DIM;
        std::copy(value, value + HEAD_DIM, key + kValues);
      }
    }
#pragma omp for collapse(3) schedule(dynamic)
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t kv_head = 0; kv_head < NUM_KV_HEADS; ++kv_head)
        for (int64_t block = 0; block < kBlocks; ++block) {
          const scalar* keys = cache + rows[b].lane * session_stride + kv_head * kHeadCache;
          attend_block(rows[b], keys, keys + kValues, scratch[b], kv_head, block, slopes, scratch[b].partial);
        }
#pragma omp for collapse(2) schedule(static)
    for (int64_t b = 0; b < batch; ++b)
      for (int64_t head = 0; head < NUM_HEADS; ++head)
        merge_blocks(scratch[b].partial[head], out + (b * NUM_HEADS + head) * HEAD_DIM);
  }
}
