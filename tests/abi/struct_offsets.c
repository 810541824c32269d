/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sizes and offsets of every public struct, frozen. A caller compiled against
 * an older header of the same SOVERSION passes these structs by address: a
 * field that moves breaks it silently, this test breaks loudly. New fields of
 * an options struct go at its end (struct_bytes tells their presence); any
 * other change here needs a new SOVERSION and a line in CHANGELOG.md.
 * The numbers hold where pointers and size_t have 64 bits; elsewhere: 77.
 */

#include <stddef.h>
#include <stdio.h>

#include <moec/moec.h>

struct frozen {
    const char *what;
    size_t found, expected;
};

/* clang-format off */
#define SIZE(type, expected) {"sizeof(" #type ")", sizeof(type), expected}
#define FIELD(type, field, expected) \
    {"offset of " #type "." #field, offsetof(type, field), expected}

static const struct frozen frozen[] = {
    SIZE(moec_rule_info, 40),
    FIELD(moec_rule_info, id, 0),
    FIELD(moec_rule_info, name, 8),
    FIELD(moec_rule_info, what, 16),
    FIELD(moec_rule_info, why, 24),
    FIELD(moec_rule_info, mend, 32),

    SIZE(moec_error, 688),
    FIELD(moec_error, status, 0),
    FIELD(moec_error, os_errno, 4),
    FIELD(moec_error, rule, 8),
    FIELD(moec_error, reserved0, 12),
    FIELD(moec_error, file_off, 16),
    FIELD(moec_error, has_off, 24),
    FIELD(moec_error, reserved, 28),
    FIELD(moec_error, text, 48),

    SIZE(moec_logical_id, 4),
    FIELD(moec_logical_id, v, 0),

    SIZE(moec_physical_id, 4),
    FIELD(moec_physical_id, v, 0),

    SIZE(moec_slot_id, 4),
    FIELD(moec_slot_id, v, 0),

    SIZE(moec_local_row, 4),
    FIELD(moec_local_row, v, 0),

    SIZE(moec_topology, 20),
    FIELD(moec_topology, n_physical, 0),
    FIELD(moec_topology, n_ranks, 4),
    FIELD(moec_topology, n_local, 8),
    FIELD(moec_topology, n_shared_slots, 12),
    FIELD(moec_topology, shared_global, 16),

    SIZE(moec_layer_key, 8),
    FIELD(moec_layer_key, space, 0),
    FIELD(moec_layer_key, number, 4),

    SIZE(moec_tensor, 40),
    FIELD(moec_tensor, name, 0),
    FIELD(moec_tensor, shape, 8),
    FIELD(moec_tensor, off, 16),
    FIELD(moec_tensor, bytes, 24),
    FIELD(moec_tensor, file, 32),
    FIELD(moec_tensor, rank, 36),
    FIELD(moec_tensor, dtype, 38),
    FIELD(moec_tensor, reserved, 39),

    SIZE(moec_move, 72),
    FIELD(moec_move, tensor, 0),
    FIELD(moec_move, op, 4),
    FIELD(moec_move, reserved, 5),
    FIELD(moec_move, elem_bytes, 6),
    FIELD(moec_move, n_rows, 8),
    FIELD(moec_move, n_cols, 16),
    FIELD(moec_move, src_off, 24),
    FIELD(moec_move, src_row, 32),
    FIELD(moec_move, src_col, 40),
    FIELD(moec_move, dst_off, 48),
    FIELD(moec_move, dst_row, 56),
    FIELD(moec_move, dst_col, 64),

    SIZE(moec_file, 64),
    FIELD(moec_file, name, 0),
    FIELD(moec_file, bytes, 8),
    FIELD(moec_file, header_bytes, 16),
    FIELD(moec_file, header_sha256, 24),
    FIELD(moec_file, etag, 56),

    SIZE(moec_note, 644),
    FIELD(moec_note, rule, 0),
    FIELD(moec_note, text, 4),

    SIZE(moec_ckpt_opts, 16),
    FIELD(moec_ckpt_opts, struct_bytes, 0),
    FIELD(moec_ckpt_opts, n_threads, 4),
    FIELD(moec_ckpt_opts, hf_cache, 8),

    SIZE(moec_facts, 120),
    FIELD(moec_facts, family, 0),
    FIELD(moec_facts, model_type, 8),
    FIELD(moec_facts, activation, 16),
    FIELD(moec_facts, score, 24),
    FIELD(moec_facts, n_experts, 32),
    FIELD(moec_facts, top_k, 36),
    FIELD(moec_facts, n_shared, 40),
    FIELD(moec_facts, shared_slots, 44),
    FIELD(moec_facts, hidden, 48),
    FIELD(moec_facts, inter, 56),
    FIELD(moec_facts, shared_width, 64),
    FIELD(moec_facts, n_layers, 72),
    FIELD(moec_facts, n_group, 76),
    FIELD(moec_facts, topk_group, 80),
    FIELD(moec_facts, routed_scale, 88),
    FIELD(moec_facts, norm_topk, 96),
    FIELD(moec_facts, shared_kind, 100),
    FIELD(moec_facts, expert_dtype, 104),
    FIELD(moec_facts, gated, 108),
    FIELD(moec_facts, no_fuse_why, 112),

    SIZE(moec_moe_layer, 24),
    FIELD(moec_moe_layer, key, 0),
    FIELD(moec_moe_layer, source_number, 8),
    FIELD(moec_moe_layer, experts_prefix, 16),

    SIZE(moec_tensor_use, 16),
    FIELD(moec_tensor_use, role, 0),
    FIELD(moec_tensor_use, layer, 4),
    FIELD(moec_tensor_use, expert, 8),
    FIELD(moec_tensor_use, is_mtp, 12),

    SIZE(moec_moe_facts, 272),
    FIELD(moec_moe_facts, struct_bytes, 0),
    FIELD(moec_moe_facts, steps, 4),
    FIELD(moec_moe_facts, route, 8),
    FIELD(moec_moe_facts, ffn, 116),
    FIELD(moec_moe_facts, shared_ffn, 164),
    FIELD(moec_moe_facts, router_weight, 212),
    FIELD(moec_moe_facts, logit_bias, 216),
    FIELD(moec_moe_facts, choice_bias, 220),
    FIELD(moec_moe_facts, expert_scale, 224),
    FIELD(moec_moe_facts, shared_gate, 228),
    FIELD(moec_moe_facts, hash_table, 232),
    FIELD(moec_moe_facts, global_scale, 236),
    FIELD(moec_moe_facts, input_scale, 240),
    FIELD(moec_moe_facts, latent_in, 244),
    FIELD(moec_moe_facts, latent_out, 248),
    FIELD(moec_moe_facts, latent_norm, 252),
    FIELD(moec_moe_facts, norm_eps, 256),
    FIELD(moec_moe_facts, why_not, 264),

    SIZE(moec_plan_opts, 32),
    FIELD(moec_plan_opts, struct_bytes, 0),
    FIELD(moec_plan_opts, n_ranks, 4),
    FIELD(moec_plan_opts, n_redundant, 8),
    FIELD(moec_plan_opts, shared, 12),
    FIELD(moec_plan_opts, w13_order, 16),
    FIELD(moec_plan_opts, allow_empty, 20),
    FIELD(moec_plan_opts, shared_store_common, 21),
    FIELD(moec_plan_opts, no_mtp, 22),
    FIELD(moec_plan_opts, by_expert, 23),
    FIELD(moec_plan_opts, placement, 24),

    SIZE(moec_eplb_opts, 32),
    FIELD(moec_eplb_opts, struct_bytes, 0),
    FIELD(moec_eplb_opts, n_redundant, 4),
    FIELD(moec_eplb_opts, n_ranks, 8),
    FIELD(moec_eplb_opts, n_groups, 12),
    FIELD(moec_eplb_opts, n_nodes, 16),
    FIELD(moec_eplb_opts, accum, 20),
    FIELD(moec_eplb_opts, ties, 24),
    FIELD(moec_eplb_opts, policy, 28),

    SIZE(moec_replicas_opts, 48),
    FIELD(moec_replicas_opts, struct_bytes, 0),
    FIELD(moec_replicas_opts, n_ranks, 4),
    FIELD(moec_replicas_opts, n_nodes, 8),
    FIELD(moec_replicas_opts, rank, 12),
    FIELD(moec_replicas_opts, all_to_all, 16),
    FIELD(moec_replicas_opts, replica, 24),
    FIELD(moec_replicas_opts, keys, 32),
    FIELD(moec_replicas_opts, n_decoder, 40),

    SIZE(moec_slot_tensor, 288),
    FIELD(moec_slot_tensor, name, 0),
    FIELD(moec_slot_tensor, dtype, 8),
    FIELD(moec_slot_tensor, rank, 12),
    FIELD(moec_slot_tensor, shape, 16),
    FIELD(moec_slot_tensor, slot_bytes, 272),
    FIELD(moec_slot_tensor, is_w2, 280),
    FIELD(moec_slot_tensor, op, 281),
    FIELD(moec_slot_tensor, all_slots, 282),

    SIZE(moec_rank_figures, 24),
    FIELD(moec_rank_figures, bytes_read, 0),
    FIELD(moec_rank_figures, bytes_written, 8),
    FIELD(moec_rank_figures, n_moves, 16),

    SIZE(moec_out_tensor, 40),
    FIELD(moec_out_tensor, kind, 0),
    FIELD(moec_out_tensor, layer, 4),
    FIELD(moec_out_tensor, t, 8),
    FIELD(moec_out_tensor, source, 16),
    FIELD(moec_out_tensor, off, 24),
    FIELD(moec_out_tensor, bytes, 32),

    SIZE(moec_out_file, 48),
    FIELD(moec_out_file, kind, 0),
    FIELD(moec_out_file, rank, 4),
    FIELD(moec_out_file, name, 8),
    FIELD(moec_out_file, bytes, 16),
    FIELD(moec_out_file, header_bytes, 24),
    FIELD(moec_out_file, n_tensors, 32),
    FIELD(moec_out_file, tensors, 40),

    SIZE(moec_finding, 80),
    FIELD(moec_finding, rule, 0),
    FIELD(moec_finding, severity, 4),
    FIELD(moec_finding, has, 8),
    FIELD(moec_finding, rank, 12),
    FIELD(moec_finding, slot, 16),
    FIELD(moec_finding, expert, 20),
    FIELD(moec_finding, layer, 24),
    FIELD(moec_finding, offset, 32),
    FIELD(moec_finding, message, 40),
    FIELD(moec_finding, file, 48),
    FIELD(moec_finding, tensor, 56),
    FIELD(moec_finding, expected, 64),
    FIELD(moec_finding, found, 72),

    SIZE(moec_theorem, 24),
    FIELD(moec_theorem, rule, 0),
    FIELD(moec_theorem, ok, 4),
    FIELD(moec_theorem, ran, 5),
    FIELD(moec_theorem, checked, 8),
    FIELD(moec_theorem, note, 16),

    SIZE(moec_verify_opts, 48),
    FIELD(moec_verify_opts, struct_bytes, 0),
    FIELD(moec_verify_opts, n_threads, 4),
    FIELD(moec_verify_opts, source, 8),
    FIELD(moec_verify_opts, families, 16),
    FIELD(moec_verify_opts, progress, 24),
    FIELD(moec_verify_opts, progress_ctx, 32),
    FIELD(moec_verify_opts, level, 40),

    SIZE(moec_mutation_info, 32),
    FIELD(moec_mutation_info, name, 0),
    FIELD(moec_mutation_info, what, 8),
    FIELD(moec_mutation_info, level, 16),
    FIELD(moec_mutation_info, headers_rule, 20),
    FIELD(moec_mutation_info, digests_rule, 24),

    SIZE(moec_dispatch_map, 72),
    FIELD(moec_dispatch_map, struct_bytes, 0),
    FIELD(moec_dispatch_map, topology, 4),
    FIELD(moec_dispatch_map, n_experts, 24),
    FIELD(moec_dispatch_map, rule, 28),
    FIELD(moec_dispatch_map, rank, 32),
    FIELD(moec_dispatch_map, layer, 36),
    FIELD(moec_dispatch_map, row0, 40),
    FIELD(moec_dispatch_map, table, 48),
    FIELD(moec_dispatch_map, cand_first, 56),
    FIELD(moec_dispatch_map, cand, 64),

    SIZE(moec_waterfill, 24),
    FIELD(moec_waterfill, mode, 0),
    FIELD(moec_waterfill, by_rank, 4),
    FIELD(moec_waterfill, routed, 8),
    FIELD(moec_waterfill, tokens, 16),

    SIZE(moec_dispatch_out, 48),
    FIELD(moec_dispatch_out, struct_bytes, 0),
    FIELD(moec_dispatch_out, slots, 8),
    FIELD(moec_dispatch_out, weights, 16),
    FIELD(moec_dispatch_out, identity, 24),
    FIELD(moec_dispatch_out, slot_counts, 32),
    FIELD(moec_dispatch_out, rank_counts, 40),

    SIZE(moec_combine_in, 72),
    FIELD(moec_combine_in, struct_bytes, 0),
    FIELD(moec_combine_in, n_tokens, 4),
    FIELD(moec_combine_in, n_cols, 8),
    FIELD(moec_combine_in, scaled_cols, 12),
    FIELD(moec_combine_in, hidden, 16),
    FIELD(moec_combine_in, slots, 24),
    FIELD(moec_combine_in, weights, 32),
    FIELD(moec_combine_in, identity, 40),
    FIELD(moec_combine_in, x, 48),
    FIELD(moec_combine_in, y, 56),
    FIELD(moec_combine_in, scale, 64),

    SIZE(moec_matrix, 136),
    FIELD(moec_matrix, struct_bytes, 0),
    FIELD(moec_matrix, format, 4),
    FIELD(moec_matrix, n_out, 8),
    FIELD(moec_matrix, n_in, 12),
    FIELD(moec_matrix, data, 16),
    FIELD(moec_matrix, data_stride, 24),
    FIELD(moec_matrix, row_bytes, 32),
    FIELD(moec_matrix, scale, 40),
    FIELD(moec_matrix, scale_stride, 48),
    FIELD(moec_matrix, scale_dtype, 56),
    FIELD(moec_matrix, block_out, 60),
    FIELD(moec_matrix, block_in, 64),
    FIELD(moec_matrix, scale2, 72),
    FIELD(moec_matrix, scale2_stride, 80),
    FIELD(moec_matrix, scale2_rows, 88),
    FIELD(moec_matrix, zeros, 96),
    FIELD(moec_matrix, zeros_stride, 104),
    FIELD(moec_matrix, bias, 112),
    FIELD(moec_matrix, bias_stride, 120),
    FIELD(moec_matrix, bias_dtype, 128),
    FIELD(moec_matrix, part_rows, 132),

    SIZE(moec_quant_error, 32),
    FIELD(moec_quant_error, max_abs, 0),
    FIELD(moec_quant_error, rms, 8),
    FIELD(moec_quant_error, rms_in, 16),
    FIELD(moec_quant_error, n, 24),

    SIZE(moec_ffn_config, 48),
    FIELD(moec_ffn_config, struct_bytes, 0),
    FIELD(moec_ffn_config, hidden, 4),
    FIELD(moec_ffn_config, inter, 8),
    FIELD(moec_ffn_config, act, 12),
    FIELD(moec_ffn_config, gated, 16),
    FIELD(moec_ffn_config, up_first, 20),
    FIELD(moec_ffn_config, weight_on_input, 24),
    FIELD(moec_ffn_config, limit, 28),
    FIELD(moec_ffn_config, alpha, 32),
    FIELD(moec_ffn_config, beta, 36),
    FIELD(moec_ffn_config, linear_beta, 40),
    FIELD(moec_ffn_config, precision, 44),

    SIZE(moec_ffn_in, 72),
    FIELD(moec_ffn_in, struct_bytes, 0),
    FIELD(moec_ffn_in, w13, 8),
    FIELD(moec_ffn_in, w2, 16),
    FIELD(moec_ffn_in, n_rows, 24),
    FIELD(moec_ffn_in, x_dtype, 28),
    FIELD(moec_ffn_in, x, 32),
    FIELD(moec_ffn_in, n_tokens, 40),
    FIELD(moec_ffn_in, n_cols, 44),
    FIELD(moec_ffn_in, weights, 48),
    FIELD(moec_ffn_in, sorted, 56),
    FIELD(moec_ffn_in, slot_first, 64),
};
/* clang-format on */

int main(void)
{
    int moved = 0;

    if (sizeof(void *) != 8 || sizeof(size_t) != 8)
        return 77;
    for (size_t i = 0; i < sizeof(frozen) / sizeof(frozen[0]); i++) {
        if (frozen[i].found == frozen[i].expected)
            continue;
        printf("%s is %zu, was %zu\n", frozen[i].what, frozen[i].found,
               frozen[i].expected);
        moved++;
    }
    return moved != 0;
}
