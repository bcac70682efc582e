#pragma once

#include "runner/encoder_cache.h"
#include "runner/log.h"
#include "runner/prompt.h"

#include "mtmd.h"

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

namespace pyfastv {

// Turbo in a vision encoder: the language of pyfastv_turbo_parse(), empty for none. vision may be null if there is none.
// Throws error(option), error(unsupported).
void attach_turbo(mtmd_context * vision, const std::string & spec);

// What is left out of pictures before it, as they are tokenized: the language of pyfastv_skip_parse(). As attach_turbo().
void attach_skip(mtmd_context * vision, const std::string & spec);

// Runs the encoder; false: it was stopped, and there is no output. Throws error(decode). log: of this scope
bool encode_piece(mtmd_context * vision, const prompt_piece & piece, const log_scope & log);

// Of the piece, which was encoded last.
encoded_slice encoder_output(mtmd_context * vision, const llama_model * model, const prompt_piece & piece);

// A vision encoder of several threads, with Turbo, and with what is left out, as each wants it: those that want the same go side
// by side, others in turn.
class turbo_gate {
public:
    explicit turbo_gate(mtmd_context * vision) : vision(vision) {} // has neither yet; may be null

    // f() with these settings in force; skip: none: whatever is, as the encoder itself does not ask. Throws as attach_turbo() and
    // attach_skip() do
    template <typename F> void with(const std::string & turbo, const std::optional<std::string> & skip, F && f) {
        enter(turbo, skip);
        const leaver leaves = { *this };
        f();
    }

    // f() with whatever is in force, which stays so meanwhile
    template <typename F> void as_it_is(F && f) {
        {
            const std::lock_guard<std::mutex> my_turn(turn);
            const std::lock_guard<std::mutex> lock(mutex);
            n_inside++;
        }
        const leaver leaves = { *this };
        f();
    }

private:
    struct leaver {
        turbo_gate & gate;
        ~leaver() { gate.leave(); }
    };

    void enter(const std::string & turbo, const std::optional<std::string> & skip);
    void leave();

    mtmd_context * vision;

    std::mutex              turn;  // nobody overtakes one who waits
    std::mutex              mutex; // of the following
    std::condition_variable left;
    std::string             turbo, skip; // in force
    int                     n_inside = 0;
};

} // namespace pyfastv
