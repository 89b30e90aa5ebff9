"""Where the words of a product stand: the problem of one call, and the description of its operation.

A problem is made anew for each product. What is 0 is not there.
"""

# Offsets in bytes into a problem.
X = 0  # address, row step, column step
W = 24  # address, row step, column step
BIAS = 48  # address, row step, column step
ALPHA = 72  # address, column step
Y = 88  # address, row step, column step
MASK = 112  # the bits of y > 0: address, row step, column step
SIZES = 136  # m, k, n
DESCRIPTION = 160
DZ = 168  # an operand that is formed (`fastrelu.kernels.gradient`), and in which place: one of the following
AS_W, TRANSPOSED_AS_W, AS_X, TRANSPOSED_AS_X = range(4)
HELD = 184  # what the results are added to: address, row step, column step
KEEPS_SUMS = 208  # whether y takes the sums themselves, in rows without gaps
PACKED = 216  # whether w is packed
PROBLEM = 224

# Offsets into a description, whose words `fastrelu.native.matrix.describe` lists.
TILING = 0  # rows, lanes of the narrowest and of the widest tile, lanes of the wide tiles of 1, 2 and 3 rows
TYPE = 48  # bytes of an element, bytes of a sum
PACK = 64  # packing of the operands' type and of the sums'
THIN = 80
TILES = 88
FINISH = 96
OPTIONS = 104  # packed, bias, alpha, alpha a row, mask
DELIVER = 144  # of a backward pass, else 0
SMALL = 152  # of a forward pass: products that are small
GRADIENT = 152  # of a backward pass: forming of dz, adding of sums, whether bits tell the derivative
OPERANDS = 176  # of each operand of a backward pass the core axes that it has, or -1 if it is not there
