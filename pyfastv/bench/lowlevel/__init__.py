"""The libraries of a folder, pyfastv's or stock llama.cpp's, through llama-cpp-python's low-level bindings.

Nothing here imports anything else of pyfastv, whose native module would load pyfastv's own libraries; so these modules
run as a package of their own, ``lowlevel``, in a process of their own (:mod:`pyfastv.bench.worker` starts it).
"""
