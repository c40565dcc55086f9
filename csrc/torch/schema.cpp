// Every op's signature, once. Backends implement them (cpu/, cuda/); fake kernels, autograd
// and autocast rules are Python (python/moe_ext/ops). Shapes: T tokens, H hidden_size, I intermediate_size,
// E num_experts, K top_k, R = T*K rows, N and C the output and input width of a plain grouped GEMM.
//
// G below is I*2 for gated activations and I for ungated ones. "rows" tensors hold R rows sorted by
// (expert, token, k); rows at and past expert_offsets[E] belong to no expert: they are zero where written
// and are never read.
#include "torch/library.h"

MOE_EXT_LIBRARY(MOE_EXT_OPS, m) {
  // router_logits [T,E] float; bias [E] float32, for selection only; score: softmax|sigmoid|sqrtsoftplus|none;
  // group_fill: -inf|0; nonfinite: propagate|sanitize|error.  -> topk_weights [T,K] (float32; float64 for float64
  // logits), topk_ids [T,K] int32.
  m.def(
      "route(Tensor router_logits, int top_k, str score, bool softmax_after, Tensor? bias, int num_groups, "
      "int topk_groups, int group_top, str group_fill, bool renormalize, float eps, float scale, str nonfinite) "
      "-> (Tensor, Tensor)");
  // grad_weights [T,K] as topk_weights -> grad_logits [T,E] in the dtype of router_logits.
  m.def(
      "route_backward(Tensor grad_weights, Tensor router_logits, Tensor topk_ids, str score, bool softmax_after, "
      "bool renormalize, float eps, float scale, str nonfinite) -> Tensor");

  // route, and sums over the tokens for auxiliary losses: score_sums [E] and z_sum [1] in the dtype of the weights,
  // expert_counts [E] int32. Not for score = none.
  m.def(
      "route_with_statistics(Tensor router_logits, int top_k, str score, bool softmax_after, Tensor? bias, "
      "int num_groups, int topk_groups, int group_top, str group_fill, bool renormalize, float eps, float scale, "
      "str nonfinite) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "route_with_statistics_backward(Tensor? grad_weights, Tensor? grad_score_sums, Tensor? grad_z_sum, "
      "Tensor router_logits, Tensor topk_ids, str score, bool softmax_after, bool renormalize, float eps, float scale, "
      "str nonfinite) -> Tensor");

  // Routing where experts choose, or an assignment does; scores [T,E] float32 or float64, token_mask [T] bool. None has
  // a derivative. The best `capacity` tokens of each expert in each of num_groups equal groups of consecutive tokens
  // -> token_ids [num_groups,E,C], topk_ids [T,max_experts_per_token], both int32 and -1 where unused.
  m.def(
      "expert_choice(Tensor scores, SymInt capacity, int num_groups, Tensor? token_mask, int max_experts_per_token) "
      "-> (Tensor, Tensor)");
  // -> the expert of each token [T] int32, the same number of tokens for each; -1 for tokens left out.
  m.def("auction(Tensor scores, Tensor? token_mask, int max_rounds) -> Tensor");
  // -> diag(u) exp(logits) diag(v) [T,E] with equal row sums and equal column sums.
  m.def("sinkhorn(Tensor logits, float tolerance, int max_iterations) -> Tensor");

  // The fewest best experts, at most max_k, whose scores reach p (moe/top_p.h). score: softmax|sigmoid|sqrtsoftplus.
  // -> topk_weights [T,max_k], topk_ids [T,max_k], padded with 0 and -1. Its gradient is route_backward.
  m.def(
      "route_top_p(Tensor router_logits, float p, int max_k, str score, bool renormalize, float eps, float scale, "
      "str nonfinite) -> (Tensor, Tensor)");

  // topk_ids [T,K] int32 or int64 -> expert_offsets [E+1], row_to_slot [R], slot_to_row [T,K], all int32. An expert
  // takes at most `capacity` slots, the first in drop_order: token|choice.
  m.def(
      "permute(Tensor topk_ids, int num_experts, int? capacity=None, str drop_order=\"token\") "
      "-> (Tensor, Tensor, Tensor)");
  // topk_ids as in permute, order: token|choice, priority [T] or [T,K] float32, group_size tokens -> positions [T,K],
  // the number of slots of the same expert and group before each, -1 for sentinels; counts [G,E]. Both int32.
  m.def(
      "slot_positions(Tensor topk_ids, int num_experts, str order=\"choice\", Tensor? priority=None, "
      "int? group_size=None) -> (Tensor, Tensor)");
  // The counts alone.
  m.def("expert_histogram(Tensor topk_ids, int num_experts, int? group_size=None) -> Tensor");
  // x [T,H] -> rows [R,H]: rows[r] = x[row_to_slot[r] / top_k].
  m.def("gather_rows(Tensor x, Tensor row_to_slot, Tensor expert_offsets, int top_k) -> Tensor");
  // grad_rows [R,H], slot_to_row [T,K] -> grad_x [T,H]: sum over k in float32, rounded once.
  m.def("gather_rows_backward(Tensor grad_rows, Tensor slot_to_row) -> Tensor");

  // rows [R,C] (or, with gather [R] int32 row numbers, any [*,C]), weight [E,N,C] (transposed: [E,C,N]),
  // bias [E,N] -> [R,N]. Any strides. The input gradient is this op with `transposed` flipped.
  m.def(
      "grouped_gemm(Tensor rows, Tensor weight, Tensor expert_offsets, Tensor? bias, Tensor? gather, "
      "bool transposed) -> Tensor");
  // Weight gradient, grad_out [R,N] -> [E,N,C] (transposed: [E,C,N]) in the dtype of rows; exact zeros for
  // experts without rows.
  m.def(
      "grouped_gemm_wgrad(Tensor rows, Tensor grad_out, Tensor expert_offsets, Tensor? gather, bool transposed) "
      "-> Tensor");
  // The same, added into an existing float32 gradient.
  m.def(
      "grouped_gemm_wgrad_(Tensor rows, Tensor grad_out, Tensor expert_offsets, Tensor? gather, bool transposed, "
      "Tensor(a!) accumulator) -> ()");
  // rows [R,N] -> [E,N]: the sum of each expert's rows in float32, rounded once (a bias gradient).
  m.def("segment_sum(Tensor rows, Tensor expert_offsets) -> Tensor");

  // rows [R,H], topk_weights [T,K], slot_to_row [T,K] -> y [T,H]: float32 sum over k = 0..K-1, rounded once.
  m.def("combine(Tensor rows, Tensor topk_weights, Tensor slot_to_row) -> Tensor");
  // grad_y [T,H] -> grad_rows [R,H], grad_topk_weights [T,K].
  m.def("combine_backward(Tensor grad_y, Tensor rows, Tensor topk_weights, Tensor slot_to_row) -> (Tensor, Tensor)");

  // The whole way of the data. activation: swiglu|geglu|geglu_tanh|reglu|clamped_swiglu (gated),
  // silu|gelu|gelu_tanh|relu|relu2 (ungated); alpha and limit serve clamped_swiglu; apply_weights: output|input;
  // save: preact|fp8|none. R is T*K, or max_rows if that is less: no more slots may name an expert. -> y [T,H], preact,
  // expert_offsets, slot_to_row. preact is [R,G]; with save=fp8 rows of uint8 (moe/fused_experts.h); [0] with
  // save=none.
  m.def(
      "fused_experts(Tensor x, Tensor w_gate_up, Tensor w_down, Tensor topk_weights, Tensor topk_ids, "
      "Tensor? b_gate_up, Tensor? b_down, str activation, float alpha, float limit, bool interleaved, "
      "bool transposed, str apply_weights, str save, int? workspace_limit, bool deterministic, "
      "SymInt? max_rows=None) -> (Tensor, Tensor, Tensor, Tensor)");
  // weight [E,G,K], or [E,K,G] transposed, in bfloat16 -> the same in the order that fused_experts multiplies fastest,
  // [E,panels,parts,steps,1024] (moe/tiled_weights.h), and which it takes in place of w_gate_up and w_down where AMX is
  // in use and nothing is kept. parts: 2 for gate and up rows, 1 else; G / parts and K are multiples of 32. CPU only,
  // no derivative.
  m.def("tile_weights(Tensor weight, int parts, bool interleaved, bool transposed) -> Tensor");
  // -> grad_x, grad_w_gate_up, grad_w_down, grad_topk_weights, grad_b_gate_up, grad_b_down; what is not asked
  // for comes back as an empty [0] tensor. grad_b_* are asked for by weight_grads where the bias exists.
  m.def(
      "fused_experts_backward(Tensor grad_y, Tensor x, Tensor w_gate_up, Tensor w_down, Tensor topk_weights, "
      "Tensor? b_gate_up, Tensor? b_down, Tensor preact, Tensor expert_offsets, Tensor slot_to_row, str activation, "
      "float alpha, float limit, bool interleaved, bool transposed, str apply_weights, int? workspace_limit, "
      "bool deterministic, bool x_grad, bool weight_grads, bool routing_grad, SymInt? max_rows=None) -> (Tensor, "
      "Tensor, Tensor, Tensor, Tensor, Tensor)");

  // Soft MoE (moe/soft.h): logits [B,m,s], token_mask [B,m] bool. With dispatch a softmax over tokens, values [B,m,D]
  // -> mixed [B,s,D]; else over slots, [B,s,D] -> [B,m,D]. statistics [2,B,R] for the R results of a sequence: the
  // largest logit, and 1 / the sum of exponentials, float32 (float64 for float64 values). logits are float64 where
  // values are.
  m.def("soft_mix(Tensor values, Tensor logits, Tensor? token_mask, bool dispatch) -> (Tensor, Tensor)");
  // -> grad_values as values, grad_logits as logits; what is not asked for comes back as an empty [0] tensor.
  m.def(
      "soft_mix_backward(Tensor grad_mixed, Tensor values, Tensor logits, Tensor? token_mask, Tensor mixed, "
      "Tensor statistics, bool dispatch, bool values_grad, bool logits_grad) -> (Tensor, Tensor)");

  // seed [1] int64 -> float32 of this shape, each number a function of (seed, its flat index); kind:
  // uniform|normal|gumbel (moe/noise.h).
  m.def("noise(Tensor seed, SymInt[] shape, str kind) -> Tensor");

  // weight [E,N,K] -> int8 [E,N,K] and float32 scales [E,N], one for each output channel; NaN where a channel is not
  // finite (moe/fused_experts_int8.h). CPU only, no derivative.
  m.def("quantize_int8(Tensor weight) -> (Tensor, Tensor)");
  // fused_experts with weights w_gate_up [E,G,H] and w_down [E,H,I] in int8, and float32 scales [E,G] and [E,H], one
  // for each output channel. x is quantised by tokens, the activation by rows (moe/fused_experts_int8.h). CPU only, no
  // derivative. -> y [T,H].
  m.def(
      "fused_experts_int8(Tensor x, Tensor w_gate_up, Tensor w_gate_up_scale, Tensor w_down, Tensor w_down_scale, "
      "Tensor topk_weights, Tensor topk_ids, Tensor? b_gate_up, Tensor? b_down, str activation, float alpha, "
      "float limit, bool interleaved, str apply_weights) -> Tensor");
}
