"""The run file: schema, writer, reader, repair; the only home of h5py."""
