#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace pyfastv {

// How many threads of this process can compute at once without sharing a core: the physical cores among the CPUs that it may run
// on, and no more than the quota of its control group (v1 or v2) pays for; at least 1. Threads that compute together wait for
// one another by spinning, so that one too many holds up all. Where the system tells neither (macOS, Windows): the CPUs.
int32_t usable_cores();

// by the files of a system below `root`, for a process that may run on these CPUs
int32_t usable_cores(const std::string & root, const std::vector<int32_t> & cpus);

} // namespace pyfastv
