// A model's weights and sizes, as Python gives them at load. Mirrors plugins/cpu_structures.py.
#pragma once

#include "matvec.h"
#include "norm.h"

struct Layer {
  Norm attention_norm, mlp_norm, q_norm, k_norm;
  Matrix qkv, attention_output, up, down;
};

struct Model {
  Matrix embedding, head;
  Norm norm;
  const Layer* layers;
  int64_t num_layers, hidden, intermediate;
  int64_t is_layer_norm, is_parallel, is_shared_norm, activation;
  double eps, clip_qkv;           // of queries, keys and values the largest absolute value; 0 for any
  int64_t max_rows, max_threads;  // rows of a step
  int64_t max_chunk, width;       // tokens of a chunk, slots of a session
};
