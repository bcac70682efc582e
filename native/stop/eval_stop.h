#pragma once

#include "ggml-backend.h"

namespace pyfastv {

// A program's eval callback (cb_eval), and whether it said stop: ggml then leaves the rest of the graph out and reports
// success.
class eval_stop {
public:
    // of the program; null: none
    eval_stop(ggml_backend_sched_eval_callback callback, void * data) : theirs(callback), theirs_data(data) {}

    // for ggml_backend_sched_set_eval_callback(), with this object as its data
    ggml_backend_sched_eval_callback callback() const { return theirs ? on_node : nullptr; }

    void begin()         { stopped = false; } // before a graph is computed
    bool said()    const { return stopped; }  // since begin()

private:
    static bool on_node(ggml_tensor * node, bool ask, void * data) {
        auto & self = *static_cast<eval_stop *>(data);

        // graphs of several parts, each on its backend, are left part by part: the next ones after their first node
        if (self.stopped) {
            return ask;
        }
        const bool res = self.theirs(node, ask, self.theirs_data);

        self.stopped = !ask && !res;
        return res;
    }

    ggml_backend_sched_eval_callback theirs;
    void *                           theirs_data;

    bool stopped = false;
};

} // namespace pyfastv
