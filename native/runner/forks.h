#pragma once

namespace pyfastv {

// A child of fork() has the memory of its parent, but none of its threads: what computes with them would wait for ever, and
// so would what ends them. An inheritable is a member of what must not be used, nor freed, in such a child.
//
// From the first one on, fork() ends the idle threads that GNU's OpenMP keeps for the thread that forks: without that a
// child could not compute with a new model either. The next computation starts them again.
class inheritable {
public:
    inheritable();

    // this process is a child of the one that made it
    bool inherited() const;

private:
    int generation;
};

// forks between the first process with an inheritable and this one
int n_forks();

} // namespace pyfastv
