// expert_choice, auction and sinkhorn on CUDA. Contract: moe/assign.h. Ids are those of the CPU.
#pragma once

#include "cuda/launch.h"
#include "moe/assign.h"

namespace moe::cuda {

// Three launches. The keys of all scores, by columns, are in the workspace.
int64_t expert_choice_workspace_bytes(const ExpertChoiceParams& params);
Outcome expert_choice(const ExpertChoiceParams& params, void* workspace, Stream stream);

// One launch of one block, which goes through all rounds.
int64_t auction_workspace_bytes(const AuctionParams& params);
Outcome auction(const AuctionParams& params, void* workspace, Stream stream);

// max_iterations + 2 launches; those after the iteration that came within the tolerance do nothing. Serves up to 12000
// experts of float logits, 6000 of double ones: a vector over the experts stands in shared memory.
int64_t sinkhorn_workspace_bytes(const SinkhornParams& params);
Outcome sinkhorn(const SinkhornParams& params, void* workspace, Stream stream);

}  // namespace moe::cuda
