#include "guard/team.h"

#ifdef GGML_USE_OPENMP
#    include <omp.h>
#endif

static _Thread_local int n_begun = 0;

void pyfastv_team_begin(void) {
    n_begun++;
}

void pyfastv_team_end(void) {
    n_begun--;
}

bool pyfastv_in_team(void) {
    return n_begun > 0;
}

void pyfastv_team_start(int n_threads) {
#ifdef GGML_USE_OPENMP
    volatile int n = 0;
    #pragma omp parallel num_threads(n_threads)
    {
        #pragma omp single
        n = omp_get_num_threads();
    }
    (void) n;
#else
    (void) n_threads;
#endif
}
