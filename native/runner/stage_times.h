#pragma once

#include "runner/options.h"
#include "runner/status.h"
#include "runner/stopwatch.h"

#include "pyfastv.h"

namespace pyfastv {

// What a computation adds to the times of the stages.
class stage_times {
public:
    explicit stage_times(const llama_context * ctx) : ctx(ctx), before(report_of(ctx)) {}

    void stop() {
        ms    = watch.ms();
        after = report_of(ctx);
    }

    // a request's share of it
    void add_to(run_report & counts, double share) const {
        counts.stage0_ms += share*(after.t_stage0_ms - before.t_stage0_ms);
        counts.choose_ms += share*(after.t_choose_ms - before.t_choose_ms);
        counts.later_ms  += share*(after.t_later_ms  - before.t_later_ms);
        if (after.t_stage0_ms == before.t_stage0_ms && after.t_choose_ms == before.t_choose_ms && after.t_later_ms == before.t_later_ms) {
            counts.full_ms += share*ms;
        }
    }

private:
    const llama_context * ctx;
    stopwatch             watch;
    pyfastv_report        before;
    pyfastv_report        after = {};
    double                ms    = 0;
};

} // namespace pyfastv
