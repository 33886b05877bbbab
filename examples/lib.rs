//! Small programs to copy from; each is a file beside this one.
