# SPDX-License-Identifier: MIT
"""TEST ONLY: expert parallelism on the CPU platform.

The CPU's unquantised kernel takes no expert map and reads past its weights
when an expert is not local. This puts a plain torch loop in its place, which
leaves w13_weight / w2_weight as they were loaded (no packing), so a test can
also compare them after start-up.
"""
import torch


def allow():
    from vllm.model_executor.layers.fused_moe.experts import cpu_moe

    def keep(self, layer):
        self._use_zentorch = False

    def apply(self, output, hidden_states, w1, w2, topk_weights, topk_ids, activation, global_num_experts,
              expert_map, a1q_scale, a2_scale, workspace13, workspace2, expert_tokens_meta,
              apply_router_weight_on_input):
        if activation.value != "silu" or self.w1_bias is not None:
            raise NotImplementedError("moec_test_only: only silu without bias")
        x = hidden_states.float()
        out = torch.zeros_like(x)
        local = topk_ids.long() if expert_map is None else expert_map.long()[topk_ids.long()]
        for slot in range(w1.shape[0]):
            rows, which = (local == slot).nonzero(as_tuple=True)
            if rows.numel() == 0:
                continue
            gate, up = (x[rows] @ w1[slot].float().T).chunk(2, dim=-1)
            y = (torch.nn.functional.silu(gate) * up) @ w2[slot].float().T
            if not apply_router_weight_on_input:
                y = y * topk_weights[rows, which].float()[:, None]
            out.index_add_(0, rows, y)
        output.copy_(out.to(output.dtype))

    cpu_moe.CPUUnquantizedExperts.process_weights_after_loading = keep
    cpu_moe.CPUUnquantizedExperts.apply = apply
