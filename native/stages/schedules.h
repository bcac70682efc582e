#pragma once

#include "pyfastv.h"

#include "llama.h"

#include <map>

namespace pyfastv {

// The schedules of a context's sequences: its own, and those that sequences have of their own. All have their cuts at the same
// layers, and as many cells.
class sequence_schedules {
public:
    explicit sequence_schedules(const pyfastv_params & own) : own_(own) {}

    // of sequences that have none; its layers and cells are those of the memory
    const pyfastv_params & own() const { return own_; }

    const pyfastv_params & of(llama_seq_id seq_id) const {
        const auto brought = brought_.find(seq_id);
        if (brought != brought_.end()) {
            return brought->second;
        }
        const auto given = given_.find(seq_id);
        return given == given_.end() ? own_ : given->second;
    }

    // until it is given another
    void give(llama_seq_id seq_id, const pyfastv_params & schedule) {
        given_[seq_id] = schedule;
        empty(seq_id);
    }

    // as if it had never been given one
    void take_away(llama_seq_id seq_id) {
        given_.erase(seq_id);
        empty(seq_id);
    }

    // what the sequence holds comes from elsewhere, with the schedule by which it was chosen: for as long as it holds something
    void bring(llama_seq_id seq_id, const pyfastv_params & schedule) { brought_[seq_id] = schedule; }

    // it holds nothing
    void empty(llama_seq_id seq_id) { brought_.erase(seq_id); }
    void empty_all() { brought_.clear(); }

    bool has(llama_seq_id seq_id) const { return given_.count(seq_id) > 0 || brought_.count(seq_id) > 0; }

    bool any_brought() const { return !brought_.empty(); }

    // f(schedule) of each that a sequence may have
    template <typename F>
    void for_each(F && f) const {
        f(own_);
        for (const auto & [id, schedule] : given_) {
            f(schedule);
        }
        for (const auto & [id, schedule] : brought_) {
            f(schedule);
        }
    }

private:
    pyfastv_params own_;

    std::map<llama_seq_id, pyfastv_params> given_;
    std::map<llama_seq_id, pyfastv_params> brought_;
};

} // namespace pyfastv
