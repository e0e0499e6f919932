// A step of the cpu target as one call, in one parallel region: tokens in, logits out. It decodes a token of each of
// several sessions, and feeds short chunks of prompts next to them.
//
// Plain C++ with a C interface: no PyTorch, and no memory is allocated in a step. Norms, activations and softmaxes are
// computed in float32. What is small (norms, packing activations, merging heads) every thread computes for itself, as
// that takes less time than waiting for another one.

#include "attention.h"
#include "matvec.h"
#include "memory.h"
#include "mlp.h"
#include "model.h"
#include "norm.h"
#include "threads.h"

namespace {

// Working memory in one piece. Its layout is the same in every step, so that padding which nobody writes stays zero.
struct Workspace {
  // Shared by all threads; rows have padded lengths.
  float *x, *qkv, *mlp;
  Partial* partials;
  // Each thread's own.
  float *input, *sums;
  char* packed;

  Workspace(const Model& model, int64_t thread, char* base) {
    Memory memory(base);
    const int64_t batch = model.max_rows;
    hidden = padded(model.hidden);
    heads = padded(kHeads * kHeadDim);
    intermediate = padded(model.intermediate);
    x = memory.take<float>(batch * hidden);
    qkv = memory.take<float>(batch * kQkv);
    mlp = memory.take<float>(batch * intermediate);
    partials = memory.take<Partial>(max_segments(batch, model.max_threads) * kGroup);
    for (int64_t i = 0; i <= thread; ++i) {
      input = memory.take<float>(batch * std::max(hidden, heads));
      sums = memory.take<float>(kStreams * batch * kTile);
      packed = memory.take<char>(batch * most_packed_bytes(std::max(std::max(hidden, heads), intermediate)));
    }
    bytes = memory.bytes();
  }

  int64_t hidden, heads, intermediate, bytes;
};

class Step {
 public:
  Step(const Thread& thread, const Model& model, const Sessions& sessions, const Workspace& work)
      : thread_(thread), model_(model), sessions_(sessions), work_(work), batch_(sessions.batch) {}

  void run(const int64_t* tokens, Scalar* cache, const int64_t* wanted, int64_t num_wanted, float* logits) {
    embed(tokens);
    for (int64_t i = 0; i < model_.num_layers; ++i) layer(model_.layers[i], cache + i * sessions_.layer_size());
    for (int64_t i = 0; i < num_wanted; ++i) normalize(model_.norm, wanted[i], i);
    batch_ = num_wanted;
    const int64_t vocabulary = model_.head.rows;
    multiply<1>(model_.head, vocabulary, work_.input, work_.hidden,
                [&](int64_t row, int64_t count, float* sums) { put(sums, batch_, count, logits + row, vocabulary); });
  }

 private:
  void embed(const int64_t* tokens) {
    const Range mine = thread_.share(batch_);
    for (int64_t b = mine.begin; b < mine.end; ++b)
      read_row(model_.embedding, tokens[b], model_.hidden, work_.x + b * work_.hidden);
    thread_.wait();
  }

  void layer(const Layer& layer, Scalar* cache) {
    normalize(layer.attention_norm);
    multiply<1>(layer.qkv, kQkv, work_.input, work_.hidden, [&](int64_t row, int64_t count, float* sums) {
      if (model_.clip_qkv > 0) clip(float(model_.clip_qkv), sums, batch_ * kTile);
      put(sums, batch_, count, work_.qkv + row, kQkv);
    });
    if (model_.is_parallel) {
      if (!model_.is_shared_norm) normalize(layer.mlp_norm);
      up(layer);
    }
    thread_.wait();
    if (layer.q_norm.weight) normalize_heads(layer);
    attend(thread_, sessions_, work_.qkv, kQkv, cache, work_.partials);
    thread_.wait();
    merge(thread_, sessions_, work_.partials, work_.input, work_.heads);
    for (int64_t b = 0; b < batch_; ++b) clear_padding(work_.input + b * work_.heads, kHeads * kHeadDim, work_.heads);
    add(layer.attention_output, work_.input, work_.heads);
    if (!model_.is_parallel) {
      thread_.wait();
      normalize(layer.mlp_norm);
      up(layer);
      thread_.wait();
    }
    add(layer.down, work_.mlp, work_.intermediate);
    thread_.wait();
  }

  // input = norm(x)
  void normalize(const Norm& norm) {
    for (int64_t b = 0; b < batch_; ++b) normalize(norm, b, b);
  }

  void normalize(const Norm& norm, int64_t from, int64_t to) {
    const float* x = work_.x + from * work_.hidden;
    float* out = work_.input + to * work_.hidden;
    if (model_.is_layer_norm) {
      layer_norm(norm, model_.eps, x, model_.hidden, out);
    } else {
      rms_norm(norm, model_.eps, x, model_.hidden, out);
    }
    clear_padding(out, model_.hidden, work_.hidden);
  }

  // Each head's query and key by itself.
  void normalize_heads(const Layer& layer) {
    const Range mine = thread_.share(batch_ * (kHeads + kKvHeads));
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      const int64_t b = i / (kHeads + kKvHeads), head = i % (kHeads + kKvHeads);
      float* x = work_.qkv + b * kQkv + head * kHeadDim;
      rms_norm(head < kHeads ? layer.q_norm : layer.k_norm, model_.eps, x, kHeadDim, x);
    }
    thread_.wait();
  }

  // mlp = activation(gate) * up, or activation(up)
  void up(const Layer& layer) {
    if (layer.up.rows > model_.intermediate) {
      multiply<2>(layer.up, model_.intermediate, work_.input, work_.hidden,
                  [&](int64_t row, int64_t count, float* sums) {
                    activate(model_.activation, sums, batch_ * kTile);
                    for (int64_t i = 0; i < batch_ * kTile; ++i) sums[i] *= sums[batch_ * kTile + i];
                    put(sums, batch_, count, work_.mlp + row, work_.intermediate);
                  });
    } else {
      multiply<1>(layer.up, model_.intermediate, work_.input, work_.hidden,
                  [&](int64_t row, int64_t count, float* sums) {
                    activate(model_.activation, sums, batch_ * kTile);
                    put(sums, batch_, count, work_.mlp + row, work_.intermediate);
                  });
    }
  }

  // x += the product
  void add(const Matrix& matrix, const float* input, int64_t stride) {
    multiply<1>(matrix, model_.hidden, input, stride, [&](int64_t row, int64_t count, float* sums) {
      for (int64_t b = 0; b < batch_; ++b)
        for (int64_t i = 0; i < count; ++i) work_.x[b * work_.hidden + row + i] += sums[b * kTile + i];
    });
  }

  template <int Parts, class Finish>
  void multiply(const Matrix& matrix, int64_t rows, const float* input, int64_t stride, Finish finish) {
    pack(matrix, input, stride, {0, batch_}, work_.packed);
    product<Parts>(thread_, matrix, rows, work_.packed, batch_, work_.sums, finish);
  }

  static void clip(float limit, float* x, int64_t size) {
    for (int64_t i = 0; i < size; ++i) x[i] = std::clamp(x[i], -limit, limit);
  }

  static void clear_padding(float* x, int64_t size, int64_t padded_size) { std::fill(x + size, x + padded_size, 0.0f); }

  const Thread& thread_;
  const Model& model_;
  const Sessions& sessions_;
  const Workspace& work_;
  int64_t batch_;
};

}  // namespace

// So that Python never passes other structures.
extern "C" const int64_t structure_bytes[] = {sizeof(Model), sizeof(Layer), sizeof(Sessions)};

// Bytes of working memory, to be zeroed once and aligned to 128.
extern "C" int64_t workspace_bytes(const Model* model) {
  return Workspace(*model, model->max_threads - 1, nullptr).bytes;
}

// Feeds a token, or the tokens of a chunk, to each of several sessions. `cache` [sessions, layers, 2, NUM_KV_HEADS,
// width, HEAD_DIM] is changed in place; logits [num_wanted, vocabulary] are those after the tokens number `wanted`.
extern "C" void decode_step(const Model* model, const Sessions* sessions, const int64_t* tokens, Scalar* cache,
                            char* workspace, int64_t threads, const int64_t* wanted, int64_t num_wanted,
                            float* logits) {
  in_parallel(threads, [&](const Thread& thread) {
    const Workspace work(*model, thread.index, workspace);
    Step(thread, *model, *sessions, work).run(tokens, cache, wanted, num_wanted, logits);
  });
}
