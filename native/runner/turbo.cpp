#include "runner/turbo.h"

#include "runner/errors.h"

#include "pyfastv_skip.h"
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

void attach_skip(mtmd_context * vision, const std::string & spec) {
    if (spec.empty()) {
        if (vision) {
            pyfastv_skip_attach(vision, nullptr);
        }
        return;
    }
    const auto check = [](pyfastv_status status) {
        if (status != PYFASTV_OK) {
            throw error(status == PYFASTV_UNSUPPORTED ? error_kind::unsupported : error_kind::option,
                    std::string("skip: ") + pyfastv_skip_last_error());
        }
    };
    pyfastv_skip_params params = {};
    params.size = sizeof(params);
    check(pyfastv_skip_parse(spec.c_str(), &params));
    if (!vision) {
        throw error(error_kind::option, "skip leaves patches of pictures out, but the model was loaded without an mmproj file");
    }
    check(pyfastv_skip_attach(vision, &params));
}

void turbo_gate::enter(const std::string & turbo, const std::optional<std::string> & skip) {
    const std::lock_guard<std::mutex> my_turn(turn);
    std::unique_lock<std::mutex>      lock(mutex);

    const bool other_turbo = turbo != this->turbo, other_skip = skip && *skip != this->skip;
    if (other_turbo || other_skip) {
        left.wait(lock, [this] { return n_inside == 0; });
    }
    if (other_turbo) {
        attach_turbo(vision, turbo);
        this->turbo = turbo;
    }
    if (other_skip) {
        attach_skip(vision, *skip);
        this->skip = *skip;
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

    const auto * tokens = mtmd_input_chunk_get_tokens_image(piece.chunk);
    const auto   n_left = piece.skip.empty() ? (size_t) pyfastv_turbo_patches(tokens) : pyfastv_skip_places(tokens, nullptr, 0);
    const bool   merged = (size_t) piece.n_encoded < n_left; // else every patch that was encoded has a token

    const bool renumbered = merged && piece.n_pos == piece.n_encoded;
    if (merged && !renumbered) {
        res.places.resize(pyfastv_turbo_places(vision, nullptr, 0));
        pyfastv_turbo_places(vision, res.places.data(), res.places.size());
    }
    if (!piece.skip.empty() && !renumbered) {
        std::vector<int32_t> kept(pyfastv_skip_places(tokens, nullptr, 0));
        pyfastv_skip_places(tokens, kept.data(), kept.size());
        for (auto & place : res.places) {
            place = kept.at(place);
        }
        res.places = res.places.empty() ? kept : res.places;
    }
    return res;
}

} // namespace pyfastv
