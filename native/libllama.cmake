# Our part of libllama.

set(PYFASTV_SOURCES
    capi/pyfastv.cpp
    stages/attach.cpp
    stages/caught.cpp
    stages/flow.cpp
    stages/flush.cpp
    llama/stage_output.cpp
    stages/staged_decode.cpp
    llama/left_recursion.cpp
    llama/stage_graph.cpp
    llama/call_sites.cpp
    llama/context.cpp
    llama/ubatch.cpp
    llama/memory/cells.cpp
    llama/memory/hybrid.cpp
    llama/memory/iswa.cpp
    llama/memory/kv.cpp
    stages/sequence.cpp
    stages/sequence_state.cpp
    llama/memory/stage_cache.cpp
    stages/staged_memory.cpp
    stages/state.cpp
    regex/matcher.cpp
    regex/parse.cpp
    regex/split.cpp
    llama/supported.cpp
    llama/scores.cpp
)
list(TRANSFORM PYFASTV_SOURCES PREPEND ${CMAKE_CURRENT_LIST_DIR}/)

target_sources(llama PRIVATE ${PYFASTV_SOURCES} $<TARGET_OBJECTS:pyfastv_settings> $<TARGET_OBJECTS:pyfastv_choose>)
# llama.cpp joins its model files into unity sources; ours keep their own anonymous namespaces
set_source_files_properties(${PYFASTV_SOURCES} TARGET_DIRECTORY llama PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
set_source_files_properties(${CMAKE_CURRENT_LIST_DIR}/capi/pyfastv.cpp TARGET_DIRECTORY llama PROPERTIES COMPILE_DEFINITIONS PYFASTV_VERSION="${PYFASTV_VERSION}")
target_include_directories(llama PRIVATE ${CMAKE_CURRENT_LIST_DIR} PUBLIC ${CMAKE_CURRENT_LIST_DIR}/include)
