# Our part of libllama. Included by third_party/patches into llama.cpp's src/CMakeLists.txt.

set(PYFASTV_SOURCES
    capi/pyfastv.cpp
    choose/choose.cpp
    choose/cover.cpp
    choose/greedy.cpp
    choose/grid.cpp
    choose/similarity.cpp
    decode/attach.cpp
    decode/caught.cpp
    decode/flow.cpp
    decode/flush.cpp
    decode/stage_output.cpp
    decode/staged_decode.cpp
    grammar/left_recursion.cpp
    graph/stage_graph.cpp
    memory/sequence.cpp
    memory/sequence_state.cpp
    memory/stage_cache.cpp
    memory/staged_memory.cpp
    memory/state.cpp
    products/parallel.cpp
    products/products.cpp
    regex/matcher.cpp
    regex/parse.cpp
    regex/split.cpp
    schedule/schedule.cpp
    settings/rules.cpp
    settings/schedule.cpp
    settings/text.cpp
    score/score.cpp
)
list(TRANSFORM PYFASTV_SOURCES PREPEND ${CMAKE_CURRENT_LIST_DIR}/)

target_sources(llama PRIVATE ${PYFASTV_SOURCES})
# llama.cpp joins its model files into unity sources; ours keep their own anonymous namespaces
set_source_files_properties(${PYFASTV_SOURCES} PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
target_include_directories(llama PRIVATE ${CMAKE_CURRENT_LIST_DIR} PUBLIC ${CMAKE_CURRENT_LIST_DIR}/include)
