"""PyTorch's CUDA caching allocator, simulated: what it reserves from the device to serve a step's allocations. Free of torch.

Facts from c10/cuda/CUDACachingAllocator.cpp and c10/core/AllocatorConfig.cpp; held against real snapshots, address by address.
"""
