# Our part of libmtmd.

set(PYFASTV_MTMD_SOURCES
    vision/encoder_check.cpp
    vision/encoders.cpp
    files/header.cpp
    files/limits.cpp
    vision/mmproj.cpp
    files/numbers.cpp
    vision/picture_shape.cpp
    vision/turbo/attach.cpp
    vision/turbo/plan.cpp
    vision/turbo/turbo.cpp
    vision/turbo/turbo_graph.cpp
    vision/skip/attach.cpp
    vision/skip/inputs.cpp
    vision/skip/skip.cpp
    choose/predict.cpp
    vision/call_sites.cpp
)
list(TRANSFORM PYFASTV_MTMD_SOURCES PREPEND ${CMAKE_CURRENT_LIST_DIR}/)

# as libllama's; libmtmd has none
if (CMAKE_CXX_COMPILER_ID MATCHES "GNU|Clang")
    set_source_files_properties(${PYFASTV_MTMD_SOURCES} TARGET_DIRECTORY mtmd PROPERTIES COMPILE_OPTIONS "-Wall;-Wextra;-Wpedantic;-Wextra-semi")
endif()

target_sources(mtmd PRIVATE ${PYFASTV_MTMD_SOURCES} $<TARGET_OBJECTS:pyfastv_settings>)
target_include_directories(mtmd PRIVATE ${CMAKE_CURRENT_LIST_DIR} PUBLIC ${CMAKE_CURRENT_LIST_DIR}/include)
