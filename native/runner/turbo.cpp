#include "runner/turbo.h"

#include "runner/errors.h"

#include "pyfastv_turbo.h"

namespace pyfastv {

void attach_turbo(mtmd_context * vision, const std::string & spec) {
    if (spec.empty()) {
        if (vision) {
            pyfastv_turbo_attach(vision, nullptr);
        }
        return;
    }

    pyfastv_turbo_params params = {};
    params.size = sizeof(params);
    if (pyfastv_turbo_parse(spec.c_str(), &params) != PYFASTV_OK) {
        throw error(error_kind::option, std::string("turbo: ") + pyfastv_turbo_last_error());
    }
    if (!vision) {
        throw error(error_kind::option, "turbo merges tokens in the vision encoder, but the model was loaded without an mmproj file");
    }
    const auto status = pyfastv_turbo_attach(vision, &params);
    if (status != PYFASTV_OK) {
        throw error(status == PYFASTV_UNSUPPORTED ? error_kind::unsupported : error_kind::option,
                std::string("turbo: ") + pyfastv_turbo_last_error());
    }
}

void turbo_gate::enter(const std::string & spec) {
    const std::lock_guard<std::mutex> my_turn(turn);
    std::unique_lock<std::mutex>      lock(mutex);

    if (spec != in_force) {
        left.wait(lock, [this] { return n_inside == 0; });
        attach_turbo(vision, spec);
        in_force = spec;
    }
    n_inside++;
}

void turbo_gate::leave() {
    const std::lock_guard<std::mutex> lock(mutex);
    n_inside--;
    left.notify_all();
}

bool encode_piece(mtmd_context * vision, const prompt_piece & piece, const log_scope & log) {
    const int32_t result = mtmd_encode_chunk(vision, piece.chunk);

    if (result != 0 && result != PYFASTV_ENCODE_STOPPED) {
        throw log.failure(error_kind::decode, "the vision encoder failed");
    }
    return result == 0;
}

encoded_slice encoder_output(mtmd_context * vision, const llama_model * model, const prompt_piece & piece) {
    const float * embd = mtmd_get_output_embd(vision);

    encoded_slice res;
    res.values.assign(embd, embd + (size_t) piece.n_encoded*llama_model_n_embd_inp(model));

    // else all patches have a token, or the tokens are numbered anew
    if (piece.merged() && piece.n_pos != piece.n_encoded) {
        res.places.resize(pyfastv_turbo_places(vision, nullptr, 0));
        pyfastv_turbo_places(vision, res.places.data(), res.places.size());
    }
    return res;
}

} // namespace pyfastv
