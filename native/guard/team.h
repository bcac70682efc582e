#pragma once

#include <stdbool.h>

// The threads that compute a graph together. Part of ggml-cpu, in C, as its own file that calls this (third_party/patches).

#ifdef __cplusplus
extern "C" {
#endif

#define PYFASTV_TEAM_API __attribute__((visibility("default")))

// From begin to end this thread computes together with workers.
PYFASTV_TEAM_API void pyfastv_team_begin(void);
PYFASTV_TEAM_API void pyfastv_team_end(void);
PYFASTV_TEAM_API bool pyfastv_in_team(void);

// Starts the workers that OpenMP keeps for this thread; it ends the process if it cannot. Nothing to do without OpenMP.
PYFASTV_TEAM_API void pyfastv_team_start(int n_threads);

#ifdef __cplusplus
}
#endif
