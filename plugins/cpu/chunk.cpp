// A chunk of a prompt of one session as one call, in one parallel region: tokens in, logits out. It computes what
// a step does (step.cpp), of more tokens: its speed is limited by arithmetic, where a step's is by memory.

#include "chunk_attention.h"
#include "mlp.h"
#include "model.h"
#include "panels.h"

namespace {

// Its layout is the same for each chunk, so that padding which nobody writes stays zero.
struct ChunkWorkspace {
  Panels x, input, qkv, attended, gate, up;
  float *widened, *row;  // the thread's own, as the last
  Panels outputs;
  ChunkAttention attention;
  int64_t bytes;

  ChunkWorkspace(const Model& model, int64_t thread, Memory memory)
      : x(panels(memory, model, model.hidden)),
        input(panels(memory, model, model.hidden)),
        qkv(panels(memory, model, kQkv)),
        attended(panels(memory, model, kHeads * kHeadDim)),
        gate(panels(memory, model, model.intermediate)),
        up(panels(memory, model, model.intermediate)),
        outputs{},
        attention(memory, model.max_chunk, model.width, model.max_threads, thread) {
    for (int64_t i = 0; i <= thread; ++i) {
      widened = memory.take<float>(kBlockRows * kBlockColumns);
      row = memory.take<float>(padded(model.hidden));
      outputs = {memory.take<float>(panels_of(model.max_chunk) * kBlockRows * kPanel), kBlockRows};
    }
    bytes = memory.bytes();
  }

 private:
  static Panels panels(Memory& memory, const Model& model, int64_t features) {
    return {memory.take<float>(panels_of(model.max_chunk) * padded(features) * kPanel), padded(features)};
  }
};

class Chunk {
 public:
  Chunk(const Thread& thread, const Model& model, const Sessions& sessions, const ChunkWorkspace& work)
      : thread_(thread), model_(model), sessions_(sessions), work_(work), tokens_(sessions.batch) {}

  void run(const int64_t* tokens, Scalar* cache, int64_t num_logits, float* logits) {
    cache += sessions_.rows[0].lane * sessions_.session_stride;
    embed(tokens);
    work_.attention.rotations(thread_, sessions_);
    thread_.wait();
    for (int64_t i = 0; i < model_.num_layers; ++i) layer(model_.layers[i], cache + i * sessions_.layer_size());
    if (num_logits) predict(num_logits, logits);
  }

 private:
  void embed(const int64_t* tokens) {
    const Range mine = thread_.share(tokens_);
    for (int64_t t = mine.begin; t < mine.end; ++t) {
      read_row(model_.embedding, tokens[t], model_.hidden, work_.row);
      for (int64_t i = 0; i < model_.hidden; ++i) work_.x.token(t, i)[0] = work_.row[i];
    }
  }

  void layer(const Layer& layer, Scalar* cache) {
    normalize(layer.attention_norm);
    multiply(layer.qkv, kQkv, work_.input, work_.qkv, false);
    if (model_.clip_qkv > 0) clip(float(model_.clip_qkv));
    if (model_.is_parallel) {
      if (!model_.is_shared_norm) {
        thread_.wait();  // others still multiply the input
        normalize(layer.mlp_norm);
      }
      up(layer);
    }
    thread_.wait();
    if (layer.q_norm.weight) normalize_heads(layer);
    work_.attention.gather(thread_, sessions_, work_.qkv, cache);
    thread_.wait();
    work_.attention.attend(thread_, sessions_, work_.qkv, cache, work_.attended);
    thread_.wait();
    multiply(layer.attention_output, model_.hidden, work_.attended, work_.x, true);
    if (!model_.is_parallel) {
      thread_.wait();
      normalize(layer.mlp_norm);
      up(layer);
      thread_.wait();
    }
    multiply(layer.down, model_.hidden, work_.gate, work_.x, true);
    thread_.wait();
  }

  // Logits after the last `count` tokens.
  void predict(int64_t count, float* logits) {
    const int64_t first = tokens_ - count, vocabulary = model_.head.rows;
    const Range mine = thread_.share(count);
    for (int64_t t = mine.begin; t < mine.end; ++t)  // to the front; another panel may not hold what is read here
      for (int64_t i = 0; i < model_.hidden; ++i) work_.input.token(t, i)[0] = work_.x.token(first + t, i)[0];
    tokens_ = count;
    thread_.wait();
    normalize(model_.norm, work_.input);
    const Range rows = share_rows(vocabulary);
    for (int64_t row = rows.begin; row < rows.end; row += kBlockRows) {
      const int64_t some = std::min(kBlockRows, rows.end - row);
      ::multiply(model_.head, row, some, work_.input, count, false, work_.outputs, 0, work_.widened);
      for (int64_t t = 0; t < count; ++t)
        for (int64_t i = 0; i < some; ++i) logits[t * vocabulary + row + i] = work_.outputs.token(t, i)[0];
    }
  }

  void normalize(const Norm& norm) { normalize(norm, work_.x); }

  // input = norm(x), for all threads.
  void normalize(const Norm& norm, const Panels& x) {
    each_vector([&](int64_t panel, int64_t offset) {
      const float* from = x.at(panel, 0) + offset;
      float* to = work_.input.at(panel, 0) + offset;
      if (model_.is_layer_norm) {
        layer_norm_of_panel(norm, model_.eps, from, model_.hidden, to);
      } else {
        rms_norm_of_panel(norm, model_.eps, from, model_.hidden, to);
      }
    });
    thread_.wait();
  }

  // Each head's query and key by itself.
  void normalize_heads(const Layer& layer) {
    each_vector([&](int64_t panel, int64_t offset) {
      for (int64_t head = 0; head < kHeads + kKvHeads; ++head) {
        float* x = work_.qkv.at(panel, head * kHeadDim) + offset;
        rms_norm_of_panel(head < kHeads ? layer.q_norm : layer.k_norm, model_.eps, x, kHeadDim, x);
      }
    });
    thread_.wait();
  }

  // gate = activation(gate) * up, or activation(up)
  void up(const Layer& layer) {
    const bool is_gated = layer.up.rows > model_.intermediate;
    const Range mine = share_rows(model_.intermediate);
    multiply(layer.up, model_.intermediate, work_.input, work_.gate, false);
    if (is_gated)
      ::multiply(layer.up, model_.intermediate + mine.begin, mine.end - mine.begin, work_.input, tokens_, false,
                 work_.up, mine.begin, work_.widened);
    each_panel([&](int64_t panel) {
      float* gate = work_.gate.at(panel, mine.begin);
      const float* up = work_.up.at(panel, mine.begin);
      const int64_t size = (mine.end - mine.begin) * kPanel;
      activate(model_.activation, gate, size);
      if (is_gated)
        for (int64_t i = 0; i < size; ++i) gate[i] *= up[i];
    });
  }

  // This thread's share of the rows of a product, which become `out` or are added to it.
  void multiply(const Matrix& matrix, int64_t rows, const Panels& x, const Panels& out, bool add) {
    const Range mine = share_rows(rows);
    ::multiply(matrix, mine.begin, mine.end - mine.begin, x, tokens_, add, out, mine.begin, work_.widened);
  }

  void clip(float limit) {
    const Range mine = share_rows(kQkv);
    each_panel([&](int64_t panel) {
      float* x = work_.qkv.at(panel, mine.begin);
      for (int64_t i = 0; i < (mine.end - mine.begin) * kPanel; ++i) x[i] = std::clamp(x[i], -limit, limit);
    });
  }

  // Whole tiles of any format, whoever has them.
  Range share_rows(int64_t rows) const {
    const Range tiles = thread_.share((rows + kTile - 1) / kTile);
    return {std::min(tiles.begin * kTile, rows), std::min(tiles.end * kTile, rows)};
  }

  template <class Use>
  void each_panel(Use use) const {
    for (int64_t panel = 0; panel < panels_of(tokens_); ++panel) use(panel);
  }

  // This thread's share of all vectors of tokens.
  template <class Use>
  void each_vector(Use use) const {
    const Range mine = thread_.share((tokens_ + kLanes - 1) / kLanes);
    for (int64_t i = mine.begin; i < mine.end; ++i) use(i / kPanelVectors, i % kPanelVectors * kLanes);
  }

  const Thread& thread_;
  const Model& model_;
  const Sessions& sessions_;
  const ChunkWorkspace& work_;
  int64_t tokens_;
};

}  // namespace

// Bytes of working memory, to be zeroed once and aligned to 128.
extern "C" int64_t chunk_bytes(const Model* model) {
  return ChunkWorkspace(*model, model->max_threads - 1, Memory(nullptr)).bytes;
}

// Feeds the tokens of a chunk to the one session that `sessions` has rows of. `cache` is as in decode_step; logits
// [num_logits, vocabulary] are those after the last tokens.
extern "C" void feed_chunk(const Model* model, const Sessions* sessions, const int64_t* tokens, Scalar* cache,
                           char* workspace, int64_t threads, int64_t num_logits, float* logits) {
  in_parallel(threads, [&](const Thread& thread) {
    const ChunkWorkspace work(*model, thread.index, Memory(workspace));
    Chunk(thread, *model, *sessions, work).run(tokens, cache, num_logits, logits);
  });
}
